// What all charts share: colours of the theme, axes, size.
import uPlot from "../vendor/uplot.js";

const probe = document.createElement("span");

/** The colour behind a CSS variable in the present theme, as canvas understands it. */
export function colour(name) {
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

export const seriesColour = (index) => `--chart-${(index % 6) + 1}`;

// 24-hour clock; the second line says the day where it changes. [smallest step in s, format, where year, month, day, hour, minute change, …]
const TIMES = [
  [86400 * 365, "{YYYY}", null, null, null, null, null, null, 1],
  [86400 * 28, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [86400, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
  [1, "{HH}:{mm}:{ss}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
  [0.001, ":{ss}.{fff}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, "\n{HH}:{mm}", null, 1],
];

export const timeAxis = (extra = {}) => axis({ values: TIMES, space: 80, ...extra });

export function axis(extra = {}) {
  const line = { stroke: () => colour("--line"), width: 1 };
  return { stroke: () => colour("--quiet"), font: '12px "Inter Variable", sans-serif', grid: line, ticks: { ...line, size: 4 }, ...extra };
}

/** A uPlot that keeps the size of `box`, its legend included, and follows the theme; returns it with the function that ends it. */
export function plot(box, options, data) {
  const legend = () => box.querySelector(".u-legend")?.offsetHeight ?? 0;
  const size = () => ({ width: Math.max(160, box.clientWidth), height: Math.max(120, box.clientHeight - legend()) });
  const chart = new uPlot({ ...size(), ...options }, data, box);
  const observer = new ResizeObserver(() => chart.setSize(size()));
  observer.observe(box);
  const redraw = () => chart.redraw(false, true);
  addEventListener("iiot:theme", redraw);
  return { chart, end: () => { observer.disconnect(); removeEventListener("iiot:theme", redraw); chart.destroy(); } };
}

export { uPlot };
