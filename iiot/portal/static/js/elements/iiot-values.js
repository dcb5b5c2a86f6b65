// The table of newest values: rows change in place, a new signal gets a row of its own.
import { on, watch } from "../live.js";
import { format } from "../values.js";
import { LiveElement } from "./live-element.js";

customElements.define("iiot-values", class extends LiveElement {
  connect() {
    this.uid = this.getAttribute("device");
    return [watch(this.uid), on("telemetry", (message) => { if (message.device_id === this.uid) this.take(message.readings, message.quality ?? {}); })];
  }

  take(readings, quality) {
    for (const [key, list] of Object.entries(readings)) {
      const [ts, value] = list.reduce((newest, each) => (each[0] >= newest[0] ? each : newest));
      const row = this.row(key);
      // A late reading never moves "latest" back.
      if (Number(row.dataset.ts) > ts) continue;
      row.dataset.ts = ts;
      row.querySelector("[data-value]").textContent = format(value);
      const word = quality[key]?.[ts] ?? "good";
      const chip = row.querySelector("[data-quality]");
      chip.hidden = word === "good";
      chip.textContent = chip.dataset.quality = word;
      row.querySelector("iiot-time").set(ts);
      row.classList.remove("flash");
      requestAnimationFrame(() => row.classList.add("flash"));
    }
  }

  row(key) {
    const found = [...this.querySelectorAll("tbody tr")].find((row) => row.dataset.key === key);
    if (found) return found;
    this.querySelector("[data-empty]")?.remove();
    this.querySelector(".table-scroll").hidden = false;
    const row = this.querySelector("tbody").insertRow();
    row.dataset.key = key;
    row.dataset.ts = "0";
    row.innerHTML = '<td class="wrap-anywhere"><a class="name"></a></td><td class="right wrap-anywhere"><span class="chip quality" data-quality="good" title="The device says how far it can be trusted" hidden></span> <b data-value></b></td><td class="right text-nowrap"><iiot-time></iiot-time></td>';
    row.querySelector("a").textContent = key;
    row.querySelector("a").href = `/devices/${this.uid}/chart?keys=${encodeURIComponent(key)}`;
    return row;
  }
});
