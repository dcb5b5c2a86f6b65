// Switches between light and dark and remembers it; the icon shows what a press brings.
const MOON = '<path d="M20 14.5A8 8 0 1 1 9.5 4 6.5 6.5 0 0 0 20 14.5z"/>';
const SUN = '<circle cx="12" cy="12" r="4"/><path d="M12 3v1.5M12 19.5V21M3 12h1.5M19.5 12H21M5.6 5.6l1.1 1.1M17.3 17.3l1.1 1.1M5.6 18.4l1.1-1.1M17.3 6.7l1.1-1.1"/>';

customElements.define("iiot-theme", class extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", this);
    addEventListener("iiot:theme", this);
    this.show();
  }

  disconnectedCallback() {
    removeEventListener("iiot:theme", this);
  }

  handleEvent(event) {
    if (event.type === "click" && event.target.closest("button")) this.toggle();
    if (event.type === "iiot:theme") this.show();
  }

  toggle() {
    const next = document.documentElement.dataset.bsTheme === "dark" ? "light" : "dark";
    try { localStorage.setItem("iiot-theme", next); } catch { /* Private windows may refuse; the choice then lasts for the page. */ }
    document.documentElement.dataset.bsTheme = next;
    dispatchEvent(new Event("iiot:theme"));
  }

  show() {
    const dark = document.documentElement.dataset.bsTheme === "dark";
    this.querySelector("svg").innerHTML = dark ? SUN : MOON;
    this.querySelector("button").setAttribute("aria-label", dark ? "Use the light theme" : "Use the dark theme");
  }
});
