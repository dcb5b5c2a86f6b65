// A count of stored readings that goes on counting with the live channel.
import { on, watch } from "../live.js";
import { LiveElement } from "./live-element.js";

/** How many readings a `telemetry` message carries. */
export const size = (message) => Object.values(message.readings).reduce((sum, list) => sum + list.length, 0);

customElements.define("iiot-count", class extends LiveElement {
  connect() {
    let count = Number(this.getAttribute("value"));
    return [watch("tenant"), on("telemetry", (message) => {
      count += size(message);
      this.textContent = count.toLocaleString("en");
    })];
  }
});
