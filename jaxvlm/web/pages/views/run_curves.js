// The curves of a run: one figure for a group of numbers that belong together.

import { address } from "../api.js";
import { fill, h } from "../dom.js";
import { MOVING, empty, linkButton } from "../parts/basic.js";
import { chart } from "../parts/chart.js";
import { checkbox, smoothingField } from "../parts/form.js";
import { metricName } from "../parts/run_words.js";
import { t } from "../texts.js";

const GROUPS = [
  { title: "curves.loss", names: ["loss", "heldout_loss"], log: true },
  { title: "curves.accuracy", names: ["accuracy", "heldout_accuracy", "heldout_exact_match", "exact_match"] },
  { title: "curves.rate", names: ["learning_rate"] },
  { title: "curves.gradient", names: ["gradient_norm"], log: true },
  { title: "curves.speed", names: ["tokens_per_second"] },
  { title: "curves.seconds", names: ["step_seconds"], log: true },
  { title: "curves.memory", names: ["peak_memory_gib"] },
];
const HIDDEN = new Set(["supervised_tokens", "tokens", "seconds", "time", "epoch"]);
const REDRAW_MS = 1000; // at most this often, however fast the lines come

/** Calls `draw` at most once a second, the last time included. */
function calmly(draw) {
  let waiting = null;
  return () => {
    waiting ??= setTimeout(() => {
      waiting = null;
      draw();
    }, REDRAW_MS);
  };
}

const whyEmpty = (run) => (MOVING.has(run.state) ? t("curves.none_yet") : t("curves.none"));

/** The loss alone, for the overview. */
export function mainCurve(place, view) {
  const lines = () => ["loss", "heldout_loss"].map((name) => view.curves.line(name, metricName(name)));
  const draw = () => {
    if (!view.curves.series.loss) return fill(place, empty("chart-line", t("curves.no_data"), whyEmpty(view.run)));
    keepOpen(place, () =>
      fill(
        place,
        chart({ title: t("curves.loss"), xLabel: t("curves.step") }, lines(), {
          log: true,
          smoothing: 0.8,
          empty: whyEmpty(view.run),
        }),
        h("p.help", {}, t("curves.loss_help")),
      ),
    );
  };
  draw();
  view.redrawCurves = calmly(() => {
    if (place.isConnected && !place.querySelector("figure")?.update(lines())) draw();
  });
}

/** A table that a person opened stays open when its figure is made again. */
function keepOpen(place, draw) {
  const open = [...place.querySelectorAll("details")].map((one) => one.open);
  draw();
  place.querySelectorAll("details").forEach((one, i) => {
    one.open = open[i] ?? false;
  });
}

/** The groups of which the curves have numbers, with their lines: [{title, log, lines}]. */
function groupsOf(curves) {
  const known = Object.keys(curves.series);
  const rest = known.filter((name) => !HIDDEN.has(name) && !GROUPS.some((group) => group.names.includes(name)));
  const groups = [
    ...GROUPS.map((group) => ({ ...group, title: t(group.title) })),
    ...rest.map((name) => ({ title: metricName(name), names: [name] })),
  ];
  return groups
    .map(({ title, log, names }) => ({ title, log, names: names.filter((name) => known.includes(name)) }))
    .filter(({ names }) => names.length > 0)
    .map(({ names, ...group }) => ({ ...group, lines: names.map((name) => curves.line(name, metricName(name))) }));
}

/** All curves, with their scale and smoothing. */
export function curvesTab(panel, view) {
  const choice = { log: true, smoothing: 0.8 };
  const place = h("div.charts", {});
  const draw = () => {
    const groups = groupsOf(view.curves);
    if (groups.length === 0) return fill(place, empty("chart-line", t("curves.no_data"), whyEmpty(view.run)));
    const one = ({ title, log, lines }) =>
      chart({ title, xLabel: t("curves.step") }, lines, {
        log: choice.log && log,
        smoothing: choice.smoothing,
        empty: whyEmpty(view.run),
      });
    keepOpen(place, () => fill(place, groups.map(one)));
  };
  const update = () => {
    const groups = groupsOf(view.curves);
    const figures = [...place.querySelectorAll("figure")];
    return figures.length === groups.length && figures.every((figure, i) => figure.update(groups[i].lines));
  };
  fill(
    panel,
    h(
      "div.filters",
      {},
      smoothingField((value) => {
        choice.smoothing = value;
        draw();
      }),
      checkbox(
        t("curves.log"),
        true,
        (on) => {
          choice.log = on;
          draw();
        },
        t("curves.log_help"),
      ),
      linkButton(t("curves.csv"), address("run/curves.csv", { run: view.id }), { symbol: "download", download: "" }),
    ),
    h("p.help", {}, t("curves.help")),
    place,
  );
  draw();
  view.redrawCurves = calmly(() => {
    if (place.isConnected && !update()) draw();
  });
}
