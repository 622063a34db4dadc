// Curves with uPlot: zoom by dragging, values under the mouse, a summary in words and a table of the same numbers.

import { fill, h, newId } from "../dom.js";
import { number, t } from "../texts.js";
import uPlot from "../vendor/uplot/uPlot.esm.js";
import { button, details } from "./basic.js";

const HEIGHT = 240;
const TABLE_ROWS = 50;
const SMOOTH_FROM = 100; // points
const MARKED_BELOW = 30; // points, each of which is then drawn as a dot
const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4]];

/** A line's look; lines differ in dashes too, not in colour alone. */
export const lineStyle = (i) => ({ stroke: resolved(`--line-${i % 6}`), dash: DASHES[Math.floor(i / 6) % 4] });

// light-dark() is only resolved where it is used as a colour.
function resolved(name) {
  const probe = h("span", { hidden: true });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** Exponential moving average; `weight` of what was before, from 0 (as it is) to below 1. */
export function smooth(values, weight) {
  let last = null;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    last = last === null ? value : weight * last + (1 - weight) * value;
    return last;
  });
}

/**
 * A figure with one chart. Its `update(lines)` shows other values of the same lines, and leaves zoom, focus and an open
 * table as they are; it is false, and changes nothing, where the lines are others.
 * @param {Object} about title, unit of x in words (xLabel)
 * @param {Array} lines {label, x: [], y: []}
 * @param {Object} options log (scale of y), smoothing (0 to 1), empty (text where there is no point)
 */
export function chart({ title, xLabel }, lines, { log = false, smoothing = 0, empty = "" } = {}) {
  const id = newId("chart");
  const figure = h("figure.chart", { "aria-labelledby": id });
  let shown = withPoints(lines);
  const head = h("div.chart-head", {}, h("h3", { id }, log ? t("chart.log_title", { title }) : title));
  figure.update = (next) => labels(withPoints(next)) === labels(shown);
  if (shown.length === 0) return fill(figure, head, h("p.muted.chart-empty", {}, empty));
  const box = h("div.chart-box", { "aria-hidden": "true" });
  const words = h("figcaption", {});
  const bodies = shown.map(() => h("tbody", {}));
  const tables = shown.map(({ label }, i) => table(xLabel, label, bodies[i]));
  const write = () => {
    fill(
      words,
      shown.map((line) => h("p", {}, inWords(line))),
    );
    shown.forEach((line, i) => fill(bodies[i], rows(line)));
  };
  write();
  fill(figure, head, box, words, details(t("chart.table"), tables));
  let plot = null;
  // The width is known only once the figure stands in the page; and a plot that is not ended is kept by the library.
  const watch = new ResizeObserver(() => requestAnimationFrame(draw));
  function draw() {
    const width = box.clientWidth;
    if (!box.isConnected) {
      watch.disconnect();
      plot?.destroy();
    } else if (width > 0 && plot) plot.setSize({ width, height: HEIGHT });
    else if (width > 0) {
      plot = new uPlot(options(width, xLabel, shown, log), data(shown, smoothing), box);
      head.append(
        button(t("chart.reset"), () => plot.setData(plot.data), { kind: "quiet small", symbol: "rotate-ccw" }),
      );
    }
  }
  figure.update = (next) => {
    if (labels(withPoints(next)) !== labels(shown)) return false;
    shown = withPoints(next);
    write();
    if (plot) renew(plot, data(shown, smoothing));
    return true;
  };
  watch.observe(box);
  return figure;
}

const withPoints = (lines) => lines.filter((line) => line.x.length > 0);

const labels = (lines) => JSON.stringify(lines.map((line) => line.label));

/** Gives a plot other values; a part that somebody has zoomed into stays. */
function renew(plot, values) {
  const { min, max } = plot.scales.x;
  const isZoomed = min > plot.data[0][0] || max < plot.data[0].at(-1);
  plot.batch(() => {
    plot.setData(values, !isZoomed);
    if (isZoomed) plot.setScale("x", { min, max });
  });
}

function options(width, xLabel, lines, log) {
  const axis = {
    stroke: resolved("--muted"),
    grid: { stroke: resolved("--line"), width: 1 },
    ticks: { stroke: resolved("--line"), width: 1 },
    font: "12px system-ui, sans-serif",
  };
  return {
    width,
    height: HEIGHT,
    scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
    axes: [
      { ...axis, values: (_, ticks) => ticks.map((tick) => number(tick)) },
      { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick, 3))) },
    ],
    series: [
      { label: xLabel, value: (_, value) => number(value) },
      ...lines.map((line, i) => ({
        label: line.label,
        ...lineStyle(i),
        width: 1.5,
        spanGaps: true,
        points: { show: (plot, at) => plot.data[at].filter(Number.isFinite).length < MARKED_BELOW },
        value: (_, value) => number(value),
      })),
    ],
    cursor: { drag: { x: true, y: false } },
  };
}

function data(lines, smoothing) {
  // Few points, such as those of the held-out set, are shown as they are.
  const tables = lines.map((line) => [line.x, line.x.length < SMOOTH_FROM ? line.y : smooth(line.y, smoothing)]);
  return tables.length === 1 ? tables[0] : uPlot.join(tables);
}

function inWords({ label, x, y }) {
  const known = y.map((value, i) => [value, x[i]]).filter(([value]) => Number.isFinite(value));
  if (known.length === 0) return t("chart.no_values", { label });
  const [least, leastAt] = known.reduce((best, one) => (one[0] < best[0] ? one : best));
  const [most, mostAt] = known.reduce((best, one) => (one[0] > best[0] ? one : best));
  return t("chart.words", { label, first: known[0][0], last: known.at(-1)[0], least, leastAt, most, mostAt });
}

function table(xLabel, label, body) {
  return h(
    "div.table-scroll",
    { tabindex: "0", role: "region", "aria-label": label },
    h(
      "table.numbers",
      {},
      h("caption", {}, label),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, xLabel), h("th", { scope: "col" }, label))),
      body,
    ),
  );
}

/** Some fifty points as rows, the last one included. */
function rows({ x, y }) {
  const every = Math.max(1, Math.ceil(x.length / TABLE_ROWS));
  const kept = x.map((one, i) => [one, y[i]]).filter((_, i) => i % every === 0 || i === x.length - 1);
  return kept.map(([one, value]) => h("tr", {}, h("td", {}, number(one)), h("td", {}, number(value))));
}

/** The newest values of a run as a small line, without axes: decoration, since its row has the numbers. */
export function spark(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of [
    ["viewBox", "0 0 100 24"],
    ["class", "spark"],
    ["aria-hidden", "true"],
    ["preserveAspectRatio", "none"],
  ])
    svg.setAttribute(key, value);
  const finite = values.filter(Number.isFinite);
  if (finite.length < 2) return svg;
  const known = finite.every((value) => value > 0) ? finite.map(Math.log) : finite; // a loss falls by magnitudes
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const place = (value, i) => `${(100 * i) / (known.length - 1)},${22 - (20 * (value - low)) / (high - low || 1)}`;
  line.setAttribute("points", known.map(place).join(" "));
  svg.append(line);
  return svg;
}
