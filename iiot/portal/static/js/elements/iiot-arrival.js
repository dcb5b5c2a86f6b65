// Turns green at the first message of a device, and so does the protocol that brought it.
import { on, watch } from "../live.js";
import { format } from "../values.js";
import { LiveElement } from "./live-element.js";

customElements.define("iiot-arrival", class extends LiveElement {
  connect() {
    const uid = this.getAttribute("device");
    return [watch(uid), on("telemetry", (message) => { if (message.device_id === uid) this.show(message); })];
  }

  show({ readings, protocol }) {
    const texts = Object.entries(readings).slice(0, 4).map(([key, list]) => `${key} = ${format(list.at(-1)[1])}`);
    this.querySelector("[data-waiting]").hidden = true;
    this.querySelector("[data-arrived]").hidden = false;
    const time = new Date().toLocaleTimeString("en-GB");
    const chip = [...document.querySelectorAll("[data-protocol]")].find((each) => each.dataset.protocol === protocol);
    const way = chip ? ` over ${chip.parentElement.querySelector("h2").textContent}` : "";
    this.querySelector("[data-detail]").textContent = `Received ${texts.join(", ")}${way} at ${time}.`;
    this.setAttribute("arrived", "");
    if (!chip) return;
    chip.hidden = false;
    chip.dataset.state = "online";
    chip.textContent = `Received ${time}`;
  }
});
