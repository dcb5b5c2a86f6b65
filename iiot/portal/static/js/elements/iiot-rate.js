// Readings per second over the last minutes. The page is fetched again now and then; its new attributes move the chart on.
import { axis, colour, plot, timeAxis, uPlot } from "../plot.js";
import { LiveElement } from "./live-element.js";

customElements.define("iiot-rate", class extends LiveElement {
  static observedAttributes = ["values", "until"];

  connect() {
    const { chart, end } = plot(this.firstElementChild, this.options(), this.data);
    this.chart = chart;
    return [end];
  }

  attributeChangedCallback() {
    // Both attributes change together; drawn once, after the second.
    if (this.chart) queueMicrotask(() => this.chart.setData(this.data));
  }

  get data() {
    const step = Number(this.getAttribute("step"));
    const until = Number(this.getAttribute("until"));
    const counts = this.getAttribute("values").split(",").map(Number);
    return [counts.map((_, i) => until - (counts.length - 1 - i) * step), counts.map((count) => count / step)];
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
});
