// Several runs side by side: curves over each other, settings that differ, scores.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { badge, empty, heading, linkButton } from "../parts/basic.js";
import { chart } from "../parts/chart.js";
import { checkbox, field, select, smoothingField } from "../parts/form.js";
import { metricName, runLink, viewLink } from "../parts/run_words.js";
import { number, percent, t } from "../texts.js";

const FIRST = [
  "loss",
  "heldout_loss",
  "heldout_exact_match",
  "exact_match",
  "heldout_accuracy",
  "accuracy",
  "learning_rate",
  "gradient_norm",
  "tokens_per_second",
  "step_seconds",
  "peak_memory_gib",
];

export async function show(place, { query, signal }) {
  const ids = query.getAll("run");
  if (ids.length < 2) {
    return fill(
      place,
      heading(t("nav.compare")),
      empty(
        "git-compare-arrows",
        t("compare.too_few"),
        t("compare.too_few_text"),
        linkButton(t("nav.home"), "#/", { kind: "primary" }),
      ),
    );
  }
  const data = await get("compare", { run: ids }, signal);
  const choice = { axis: "x", log: true, smoothing: 0.8 };
  const charts = h("div.charts", {});
  const draw = () => drawCharts(charts, data, ids, choice);
  fill(
    place,
    heading(t("compare.title", { n: ids.length }), t("compare.lead")),
    h(
      "ul.plain",
      {},
      data.runs.map((run) => h("li.row", {}, badge(run.state), h("a", { href: runLink(run.id) }, run.id))),
    ),
    h(
      "div.filters",
      {},
      field(
        { label: t("compare.axis"), help: t("compare.axis_help") },
        select(
          [
            ["x", t("curves.step")],
            ["tokens", t("compare.tokens")],
            ["seconds", t("compare.seconds")],
          ],
          "x",
          (axis) => {
            choice.axis = axis;
            draw();
          },
        ),
      ),
      smoothingField((value) => {
        choice.smoothing = value;
        draw();
      }),
      checkbox(t("curves.log"), true, (on) => {
        choice.log = on;
        draw();
      }),
    ),
    charts,
    evaluations(data.evaluations ?? {}, ids),
    settings(data.settings ?? [], ids),
  );
  draw();
}

const LOG = new Set(["loss", "heldout_loss", "gradient_norm", "step_seconds"]);

function drawCharts(place, { series }, ids, { axis, log, smoothing }) {
  const names = Object.keys(series).sort((a, b) => rank(a) - rank(b));
  const xLabel = { x: t("curves.step"), tokens: t("compare.tokens"), seconds: t("compare.seconds") }[axis];
  if (names.length === 0) return fill(place, empty("chart-line", t("curves.no_data"), t("curves.none")));
  fill(
    place,
    names.map((name) =>
      chart(
        { title: metricName(name), xLabel },
        ids
          .filter((id) => series[name][id])
          .map((id) => ({ label: id, x: series[name][id][axis] ?? [], y: series[name][id].value })),
        { log: log && LOG.has(name), smoothing, empty: t("compare.no_axis") },
      ),
    ),
  );
}

const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

function tableOf(title, help, head, rows) {
  return h(
    "section.card",
    {},
    h("h2", {}, title),
    h("p.help", {}, help),
    h(
      "div.table-scroll",
      { tabindex: "0", role: "region", "aria-label": title },
      h(
        "table.settings",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            head.map((name) => h("th", { scope: "col" }, name)),
          ),
        ),
        h("tbody", {}, rows),
      ),
    ),
  );
}

function evaluations(all, ids) {
  const names = Object.keys(all);
  if (names.length === 0)
    return h("section.card", {}, h("h2", {}, t("compare.scores")), h("p.muted", {}, t("compare.no_scores")));
  const write = ({ score, low, high }) => {
    const one = (value) => (value <= 1 ? percent(value) : number(value));
    return low === null || low === undefined
      ? one(score)
      : t("compare.score", { score: one(score), low: one(low), high: one(high) });
  };
  return tableOf(
    t("compare.scores"),
    t("compare.scores_help"),
    [t("evaluation.suite"), ...ids],
    names.map((name) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, name),
        ids.map((id) =>
          h(
            "td",
            {},
            all[name][id] ? h("a", { href: viewLink("evaluation", id, { name }) }, write(all[name][id])) : "–",
          ),
        ),
      ),
    ),
  );
}

const plain = (value) =>
  value === undefined || value === null ? "–" : typeof value === "string" ? value || '""' : JSON.stringify(value);

function settings(all, ids) {
  if (all.length === 0)
    return h("section.card", {}, h("h2", {}, t("compare.settings")), h("p.muted", {}, t("settings.none_changed")));
  return tableOf(
    t("compare.settings"),
    t("compare.settings_help"),
    [t("settings.key"), ...ids],
    all.map(({ key, values }) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, h("code", {}, key)),
        ids.map((id) => h("td", {}, h("code", {}, plain(values[id])))),
      ),
    ),
  );
}
