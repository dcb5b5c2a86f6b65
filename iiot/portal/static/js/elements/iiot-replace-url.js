// After a form was answered with a page: give that page its own address, so that a reload does not send the form again.
customElements.define("iiot-replace-url", class extends HTMLElement {
  connectedCallback() {
    history.replaceState(null, "", this.getAttribute("to"));
    this.remove();
  }
});
