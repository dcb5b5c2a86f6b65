// A moment in the reader's own time zone, relative or absolute; the title keeps UTC.
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });
const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
const shown = new Set();
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60]];

/** "12s ago", "yesterday", or the date when it is more than a week away. */
export function ago(ms, now = Date.now()) {
  const seconds = (ms - now) / 1000;
  if (Math.abs(seconds) < 5) return "just now";
  if (Math.abs(seconds) > 7 * 86400) return day.format(ms);
  const [unit, size] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? ["second", 1];
  return relative.format(Math.trunc(seconds / size), unit);
}

export class IiotTime extends HTMLElement {
  // A page that is fetched again brings the text in UTC; it is put right before it is painted.
  #observer = new MutationObserver(() => this.show());

  connectedCallback() {
    shown.add(this);
    this.#observer.observe(this, { subtree: true, childList: true, characterData: true, attributeFilter: ["datetime"] });
    this.show();
  }

  disconnectedCallback() {
    shown.delete(this);
    this.#observer.disconnect();
  }

  /** Show another moment, in milliseconds since the epoch. */
  set(ms) {
    let time = this.querySelector("time");
    if (!time) this.replaceChildren(time = document.createElement("time"));
    time.dateTime = new Date(ms).toISOString();
    time.title = `${time.dateTime.slice(0, 19).replace("T", " ")} UTC`;
    this.show();
  }

  show() {
    const time = this.querySelector("time");
    const ms = Date.parse(time?.dateTime);
    if (Number.isNaN(ms)) return;
    const text = this.getAttribute("mode") === "absolute" ? absolute.format(ms) : ago(ms);
    if (time.textContent !== text) time.textContent = text;
  }
}

customElements.define("iiot-time", IiotTime);
setInterval(() => { if (!document.hidden) for (const each of shown) each.show(); }, 1000);
