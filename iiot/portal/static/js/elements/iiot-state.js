// The state of one device, kept up to date by `device` events.
import { on, watch } from "../live.js";
import { LiveElement } from "./live-element.js";

const TEXT = { new: "Never seen", online: "Online", offline: "Offline", disabled: "Disabled" };

customElements.define("iiot-state", class extends LiveElement {
  connect() {
    const uid = this.getAttribute("device");
    return [watch(uid), on("device", (message) => {
      if (message.device_id !== uid || this.dataset.state === "disabled" || !TEXT[message.status]) return;
      this.dataset.state = message.status;
      this.textContent = TEXT[message.status];
    })];
  }
});
