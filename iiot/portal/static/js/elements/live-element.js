// Base of the elements that listen: what `connect()` returns (functions that end something) is called when the element leaves the page.
export class LiveElement extends HTMLElement {
  #ends = [];

  connectedCallback() {
    this.#ends = this.connect() ?? [];
  }

  disconnectedCallback() {
    for (const end of this.#ends) end();
    this.#ends = [];
  }
}
