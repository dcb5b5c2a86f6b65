// Adds a button that copies the text of the <code> inside.
const COPY = '<rect x="9" y="9" width="11" height="11" rx="2"/><path d="M5 15a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1h9a1 1 0 0 1 1 1"/>';
const DONE = '<path d="m5 12.5 4.5 4.5L19 7.5"/>';

async function copy(text, node) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Plain HTTP off localhost has no clipboard interface: select it, and the old command copies the selection.
  getSelection().selectAllChildren(node);
  if (!document.execCommand("copy")) throw new Error("refused");
}

customElements.define("iiot-copy", class extends HTMLElement {
  connectedCallback() {
    if (this.querySelector(":scope > button")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "icon-btn";
    button.innerHTML = `<svg class="icon" viewBox="0 0 24 24" aria-hidden="true">${COPY}</svg><span class="visually-hidden" role="status"></span>`;
    button.title = "Copy";
    button.setAttribute("aria-label", `Copy ${this.getAttribute("label")}`);
    button.addEventListener("click", () => this.press(button));
    this.append(button);
  }

  async press(button) {
    const code = this.querySelector("code");
    const status = button.querySelector("[role=status]");
    try {
      await copy(code.textContent, code);
      button.querySelector("svg").innerHTML = DONE;
      status.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      status.textContent = "Not allowed to copy. The text is selected: press Ctrl+C.";
    }
    setTimeout(() => { button.querySelector("svg").innerHTML = COPY; status.textContent = ""; }, 2000);
  }
});
