// Says in words whether the page is connected to the live channel.
import { currentState, on } from "../live.js";
import { LiveElement } from "./live-element.js";

const TEXT = { connecting: "Live channel connecting", live: "Live", down: "Live channel lost, trying again" };

customElements.define("iiot-live", class extends LiveElement {
  connect() {
    const show = (state) => {
      this.dataset.state = state;
      this.textContent = TEXT[state];
    };
    show(currentState());
    return [on("state", show)];
  }
});
