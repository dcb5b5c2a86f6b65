// Readings per second of the whole tenant over the last minutes, moved on by the live channel.
import { on, watch } from "../live.js";
import { axis, colour, plot, timeAxis, uPlot } from "../plot.js";
import { size } from "./iiot-count.js";
import { LiveElement } from "./live-element.js";

customElements.define("iiot-rate", class extends LiveElement {
  connect() {
    this.step = Number(this.getAttribute("step"));
    const until = Number(this.getAttribute("until"));
    const counts = this.getAttribute("values").split(",").map(Number);
    this.xs = counts.map((_, i) => until - (counts.length - 1 - i) * this.step);
    this.ys = counts.map((count) => count / this.step);
    const { chart, end } = plot(this.firstElementChild, this.options(), [this.xs, this.ys]);
    this.chart = chart;
    const timer = setInterval(() => this.move(), 1000);
    return [end, () => clearInterval(timer), watch("tenant"), on("telemetry", (message) => this.add(size(message)))];
  }

  options() {
    return {
      legend: { show: false },
      cursor: { y: false },
      scales: { y: { range: (_u, _low, high) => [0, Math.max(1, high * 1.15)] } },
      series: [{}, {
        stroke: () => colour("--chart-1"), width: 1.75, points: { show: false },
        fill: () => colour("--chart-1").replace(/\)$/, " / 0.12)"), paths: uPlot.paths.stepped({ align: 1 }),
      }],
      axes: [timeAxis({ space: 70 }), axis({ size: 46 })],
    };
  }

  move() {
    const slot = Math.floor(Date.now() / 1000 / this.step) * this.step;
    while (this.xs.at(-1) < slot) {
      this.xs.push(this.xs.at(-1) + this.step);
      this.ys.push(0);
      this.xs.shift();
      this.ys.shift();
    }
    if (!document.hidden) this.chart.setData([this.xs, this.ys]);
  }

  add(count) {
    this.move();
    this.ys[this.ys.length - 1] += count / this.step;
  }
});
