// The chart of a device: history by REST, then live points by the socket; after a gap it loads again. The address keeps what is shown.
import { api } from "../api.js";
import { currentState, on, watch } from "../live.js";
import { axis, colour, plot, seriesColour, timeAxis, uPlot } from "../plot.js";
import { append, join, question, RANGES, sides } from "../series.js";
import { format } from "../values.js";
import { LiveElement } from "./live-element.js";

const FIRST = 3;
// On and off run along the bottom, below what is measured.
const SCALES = { flag: { range: [-0.25, 12] } };

customElements.define("iiot-chart", class extends LiveElement {
  connect() {
    this.uid = this.getAttribute("device");
    this.box = this.querySelector(".chart-box");
    this.boxes = [...this.querySelectorAll(".pick input")];
    this.boxes.forEach((box, i) => { box.parentElement.style.setProperty("--series", `var(${seriesColour(i)})`); });
    this.points = {};
    this.readAddress();
    this.addEventListener("change", (event) => { if (event.target.matches(".pick input")) this.load(); });
    this.addEventListener("click", (event) => { if (event.target.dataset.range) this.pick(event.target.dataset.range); });
    this.custom.addEventListener("submit", (event) => { event.preventDefault(); this.load(); });
    this.load();
    const timer = setInterval(() => this.tick(), 1000);
    const ends = [watch(this.uid), on("telemetry", (message) => this.take(message)), on("gap", () => this.load()), on("state", () => this.say())];
    return [...ends, () => clearInterval(timer), () => this.drawn?.end()];
  }

  get custom() { return this.querySelector("[data-custom]"); }
  get keys() { return this.boxes.filter((box) => box.checked).map((box) => box.value); }
  get follows() { return this.range !== "custom"; }

  // Averages of whole buckets are loaded again now and then; raw points would not fit among them.
  get averages() { return this.follows && RANGES[this.range] > 86400; }

  get window() {
    if (this.follows) return [Date.now() - RANGES[this.range] * 1000, Date.now()];
    return [Date.parse(this.custom.from.value), Date.parse(this.custom.to.value)];
  }

  readAddress() {
    const query = new URLSearchParams(location.search);
    const asked = query.get("keys")?.split(",") ?? [];
    const numbers = this.boxes.filter((box) => box.dataset.type === "number");
    const first = (numbers.length ? numbers : this.boxes).slice(0, FIRST);
    for (const box of asked.length ? this.boxes.filter((each) => asked.includes(each.value)) : first) box.checked = true;
    this.range = query.get("range") in RANGES || query.get("range") === "custom" ? query.get("range") : "1h";
    if (this.range === "custom") for (const name of ["from", "to"]) this.custom[name].value = query.get(name) ?? "";
    this.mark();
  }

  writeAddress() {
    const query = new URLSearchParams({ range: this.range, keys: this.keys.join(",") });
    if (!this.follows) for (const name of ["from", "to"]) query.set(name, this.custom[name].value);
    history.replaceState(null, "", `?${query}`);
  }

  mark() {
    for (const button of this.querySelectorAll("[data-range]")) button.setAttribute("aria-pressed", String(button.dataset.range === this.range));
    this.custom.hidden = this.follows;
  }

  pick(range) {
    if (range === "custom" && this.follows) this.fillCustom();
    this.range = range;
    this.mark();
    this.load();
  }

  fillCustom() {
    const local = (ms) => new Date(ms - new Date(ms).getTimezoneOffset() * 60000).toISOString().slice(0, 16);
    [this.custom.from.value, this.custom.to.value] = this.window.map(local);
  }

  async load() {
    this.writeAddress();
    this.loading?.abort();
    const [from, to] = this.window;
    if (!this.keys.length) return this.note("Choose a signal above.");
    if (!(from < to)) return this.note("The start must lie before the end.");
    this.loading = new AbortController();
    this.box.setAttribute("aria-busy", "true");
    const query = new URLSearchParams({ keys: this.keys.join(","), from: new Date(from).toISOString(), to: new Date(to).toISOString(), ...question(from, to) });
    this.loadedAt = Date.now();
    const late = [];
    this.late = late; // What arrives while the history is on its way is added to it.
    this.failed = false;
    try {
      const answer = await api(`/devices/${this.uid}/telemetry?${query}`, { signal: this.loading.signal });
      this.points = Object.fromEntries(this.keys.map((key) => [key, (answer[key] ?? []).map(([ts, value]) => [typeof ts === "string" ? Date.parse(ts) : ts, value])]));
      this.late = null;
      late.forEach((message) => this.take(message));
      this.draw(true);
    } catch (error) {
      if (this.late === late) this.late = null;
      if (error.name !== "AbortError") {
        this.failed = true; // The reason and the button stay until they are used.
        this.note(`The history could not be loaded. ${error.message}`, true);
      }
    } finally {
      this.box.removeAttribute("aria-busy");
    }
    return this.say();
  }

  take(message) {
    if (message.device_id !== this.uid || !this.follows || this.averages) return;
    if (this.late) { this.late.push(message); return; }
    const [from] = this.window;
    for (const key of this.keys) {
      if (message.readings[key]) this.points[key] = append(this.points[key] ?? [], message.readings[key], from);
    }
    this.dirty = true;
  }

  tick() {
    if (document.hidden || this.late || this.failed || !this.follows || !this.keys.length) return;
    if (this.averages) {
      if (Date.now() - this.loadedAt > 60000) this.load();
      return;
    }
    if (this.dirty || RANGES[this.range] <= 21600) this.draw(false);
    this.dirty = false;
  }

  draw(anew) {
    const keys = this.keys;
    if (!keys.some((key) => this.points[key]?.length)) {
      return this.note(this.follows ? "No readings in this range. New ones appear by themselves." : "No readings in this range. Choose another.");
    }
    const data = join(keys, this.points);
    if (anew || !this.drawn) this.build(keys, data);
    else this.drawn.chart.setData(data, false);
    const [from, to] = this.window;
    this.drawn.chart.setScale("x", { min: from / 1000, max: to / 1000 });
    this.summary(keys);
  }

  build(keys, data) {
    this.drawn?.end();
    this.box.replaceChildren();
    const numbers = keys.filter((key) => this.input(key).dataset.type === "number");
    const side = sides(numbers, Object.fromEntries(numbers.map((key) => [key, this.input(key).dataset.unit])), this.points);
    const axes = [timeAxis(), axis({ size: 54, ...this.title(numbers.filter((key) => side[key] === "y")) })];
    const right = numbers.filter((key) => side[key] === "right");
    if (right.length) axes.push(axis({ size: 54, side: 1, scale: "right", grid: { show: false }, ...this.title(right) }));
    const first = { value: (_u, v) => (v == null ? "–" : new Date(v * 1000).toLocaleString("en-GB")) };
    const series = [first, ...keys.map((key) => this.series(key, side[key], data[0].length))];
    this.drawn = plot(this.box, { series, axes, scales: SCALES, cursor: { drag: { x: true, y: false } } }, data);
  }

  // What an axis measures: the unit its signals share, else their names.
  title(keys) {
    const units = [...new Set(keys.map((key) => this.input(key).dataset.unit))];
    const text = units.length === 1 && units[0] ? units[0] : keys.join(", ");
    return { label: text.length > 48 ? `${text.slice(0, 47)}…` : text, labelSize: 20, labelGap: 0, labelFont: '12px "Inter Variable", sans-serif' };
  }

  series(key, side, points) {
    const { type, unit } = this.input(key).dataset;
    const stroke = () => colour(seriesColour(this.boxes.indexOf(this.input(key))));
    const common = { label: key, stroke, width: 1.75, points: { show: points < 40, size: 5, fill: stroke } };
    if (type === "boolean") return { ...common, scale: "flag", paths: uPlot.paths.stepped({ align: 1 }), value: (_u, v) => (v == null ? "–" : v ? "true" : "false") };
    return { ...common, scale: side, value: (_u, v) => (v == null ? "–" : `${format(v)}${unit ? ` ${unit}` : ""}`) };
  }

  input(key) { return this.boxes.find((box) => box.value === key); }

  note(text, retry = false) {
    this.drawn?.end();
    this.drawn = null;
    const note = document.createElement("div");
    note.className = "chart-note";
    note.append(text);
    if (retry) {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "btn btn-sm", textContent: "Try again" });
      button.addEventListener("click", () => this.load());
      note.append(button);
    }
    this.box.replaceChildren(note);
    this.querySelector("[data-summary]").textContent = "\u00a0";
  }

  summary(keys) {
    const count = keys.reduce((sum, key) => sum + (this.points[key]?.length ?? 0), 0);
    const newest = keys.map((key) => this.points[key]?.at(-1)).filter(Boolean).reduce((a, b) => (a && a[0] > b[0] ? a : b), null);
    const text = `${count.toLocaleString("en")} points shown, the newest of ${new Date(newest[0]).toLocaleTimeString("en-GB")}`;
    const place = this.querySelector("[data-summary]");
    if (place.textContent !== text) place.textContent = text;
  }

  say() {
    const badge = this.querySelector("[data-follow]");
    badge.dataset.state = this.follows ? currentState() : "disabled";
    badge.textContent = this.follows ? { live: "Live", connecting: "Connecting", down: "Live channel lost" }[currentState()] : "Fixed range";
  }
});
