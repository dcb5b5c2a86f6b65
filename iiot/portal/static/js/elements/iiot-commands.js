// Tells the list of commands that one of this device has taken a step; the list asks the server again (hx-trigger).
import { on, watch } from "../live.js";
import { LiveElement } from "./live-element.js";

customElements.define("iiot-commands", class extends LiveElement {
  connect() {
    const uid = this.getAttribute("device");
    // The list is replaced as a whole; what the reader has opened stays open.
    let open = [];
    const note = () => { open = [...document.querySelectorAll("[data-command]:has(details[open])")].map((each) => each.dataset.command); };
    const restore = () => { for (const id of open) document.querySelector(`[data-command="${id}"] details`)?.setAttribute("open", ""); };
    document.addEventListener("htmx:before:swap", note);
    document.addEventListener("htmx:after:swap", restore);
    const tell = () => document.body.dispatchEvent(new Event("iiot-command"));
    return [
      () => document.removeEventListener("htmx:before:swap", note),
      () => document.removeEventListener("htmx:after:swap", restore),
      watch(uid),
      on("command", (message) => { if (message.device_id === uid) tell(); }),
      // Events that came while the connection was away are not sent again.
      on("state", (state) => { if (state === "live") tell(); }),
    ];
  }
});
