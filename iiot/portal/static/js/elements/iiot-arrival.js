// Turns green at the first message of a device.
import { on, watch } from "../live.js";
import { format } from "../values.js";
import { LiveElement } from "./live-element.js";

customElements.define("iiot-arrival", class extends LiveElement {
  connect() {
    const uid = this.getAttribute("device");
    return [watch(uid), on("telemetry", (message) => { if (message.device_id === uid) this.show(message.readings); })];
  }

  show(readings) {
    const texts = Object.entries(readings).slice(0, 4).map(([key, list]) => `${key} = ${format(list.at(-1)[1])}`);
    this.querySelector("[data-waiting]").hidden = true;
    this.querySelector("[data-arrived]").hidden = false;
    this.querySelector("[data-detail]").textContent = `Received ${texts.join(", ")} at ${new Date().toLocaleTimeString("en-GB")}.`;
    this.setAttribute("arrived", "");
  }
});
