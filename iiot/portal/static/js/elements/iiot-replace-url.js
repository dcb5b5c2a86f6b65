// After a form was answered with a page: give that page the address `to`, else that of the page with the form, so that a reload does not send
// the form again.
customElements.define("iiot-replace-url", class extends HTMLElement {
  connectedCallback() {
    const to = this.getAttribute("to") ?? document.referrer;
    if (to && new URL(to, location).origin === location.origin) history.replaceState(null, "", to);
    this.remove();
  }
});
