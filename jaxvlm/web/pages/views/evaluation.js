// Answers of a model to questions whose answers are known: score, gallery, and what another run does better.

import { address, get } from "../api.js";
import { debounce, fill, h } from "../dom.js";
import { badge, button, details, empty, facts, heading, icon, linkButton, problemNotice } from "../parts/basic.js";
import { field, select, textInput } from "../parts/form.js";
import { runLink, viewLink } from "../parts/run_words.js";
import { percent, number, t } from "../texts.js";
import { startEvaluation } from "./evaluation_start.js";

const PAGE = 24; // answers shown at once

export async function show(place, { id, query, session, signal }) {
  if (!id) return chooseRun(place, signal);
  const view = { id, session, signal, name: query.get("name"), stage: query.get("stage"), step: query.get("step") };
  const results = h("div.stack", {}),
    gallery = h("div.stack", {});
  fill(
    place,
    h(
      "nav.crumbs",
      { "aria-label": t("nav.where") },
      h("a", { href: "#/" }, t("nav.home")),
      " / ",
      h("a", { href: runLink(id) }, id),
      " / ",
      h("span", {}, t("nav.evaluation")),
    ),
    heading(
      t("evaluation.title", { name: id }),
      t("evaluation.lead"),
      linkButton(t("run.chat"), viewLink("chat", id), { symbol: "message-square" }),
    ),
    results,
    gallery,
  );
  view.reload = async () => {
    const all = await list(id, signal);
    drawResults(results, gallery, all, view);
  };
  await view.reload();
}

const list = (id, signal) => get("evaluations", { run: id }, signal);

async function chooseRun(place, signal) {
  const { runs } = await get("runs", {}, signal);
  fill(
    place,
    heading(t("nav.evaluation"), t("evaluation.choose")),
    runs.length
      ? h(
          "ul.plain",
          {},
          runs.map((run) =>
            h("li", {}, h("a", { href: viewLink("evaluation", run.id) }, run.id), " ", badge(run.state)),
          ),
        )
      : empty(
          "clipboard-check",
          t("home.none"),
          t("evaluation.none_text"),
          linkButton(t("nav.new"), "#/new", { kind: "primary" }),
        ),
  );
}

function drawResults(place, gallery, all, view) {
  const start = startEvaluation(view);
  if (all.length === 0) {
    fill(place, empty("clipboard-check", t("evaluation.none"), t("evaluation.none_text")), start);
    return fill(gallery);
  }
  const readable = all.filter((one) => !one.problem);
  view.name = (readable.find((one) => one.name === view.name) ?? readable[0])?.name;
  const open = (name) => {
    view.name = name;
    drawResults(place, gallery, all, view);
  };
  fill(
    place,
    h(
      "ul.scores",
      { "aria-label": t("evaluation.scores") },
      all.map((one) => score(one, view, open)),
    ),
    start,
  );
  if (!view.name) return fill(gallery);
  showGallery(gallery, view).catch((problem) => {
    if (problem.name !== "AbortError") fill(gallery, problemNotice(problem));
  });
}

function score(one, view, open) {
  if (one.problem)
    return h("li.score.card", {}, h("strong", {}, one.name), h("p.original", { lang: "en" }, one.problem));
  const [name, value] = main(one.score);
  const asPercent = value !== null && value <= 1;
  const write = (x) => (asPercent ? percent(x) : number(x));
  const chosen = one.name === view.name;
  return h(
    "li.score.card",
    { class: chosen ? "chosen" : "" },
    h(
      "button.link",
      { type: "button", "aria-pressed": String(chosen), on: { click: () => open(one.name) } },
      one.title ?? one.name,
    ),
    h("p.score-value", {}, write(value), h("span.muted.small", {}, ` ${scoreName(name)}`)),
    one.low !== null &&
      one.low !== undefined &&
      h("p.muted.small", {}, t("evaluation.interval", { low: write(one.low), high: write(one.high) })),
    h("p.muted.small", {}, [t("evaluation.count", { n: one.count }), one.dialect].filter(Boolean).join(" · ")),
    one.published?.length > 0 &&
      h(
        "p.muted.small",
        {},
        t("evaluation.published", {
          value: one.published.map((other) => `${other.model} ${number(other.value)}`).join(", "),
        }),
      ),
    Object.keys(one.score ?? {}).length > 1 &&
      details(
        t("evaluation.all_numbers"),
        facts(
          Object.entries(one.score).map(([key, x]) => [scoreName(key), typeof x === "number" ? number(x) : String(x)]),
        ),
      ),
  );
}

const scoreName = (name) => name.replaceAll("_", " ");

/** The first number of a score, with its name. */
function main(values) {
  if (typeof values === "number") return ["", values];
  return Object.entries(values ?? {}).find(([, value]) => typeof value === "number") ?? ["", null];
}

async function showGallery(place, view) {
  const choice = { group: "", verdict: "", text: "", sort: "", offset: 0, other: "" };
  const body = h("div.stack", {}),
    flips = h("div.stack", {});
  const read = () =>
    get("evaluation", { run: view.id, name: view.name, ...choice, other: null, limit: PAGE }, view.signal);
  const draw = async () => {
    const answer = await read();
    drawAnswers(body, answer, choice, view, draw);
    return answer;
  };
  const change =
    (part, reset = true) =>
    (value) => {
      choice[part] = value;
      if (reset) choice.offset = 0;
      draw().catch(failed);
    };
  const failed = (problem) => {
    if (problem.name !== "AbortError") fill(body, problemNotice(problem));
  };
  const [first, { runs }] = await Promise.all([read(), get("runs", {}, view.signal)]);
  const groups = Object.entries(first.groups ?? {}).flatMap(([axis, values]) =>
    Object.keys(values).map((value) => [`${axis}=${value}`, value]),
  );
  const others = [["", "–"], ...runs.filter((run) => run.id !== view.id).map((run) => [run.id, run.id])];
  fill(
    place,
    h("h2", {}, t("evaluation.answers")),
    h(
      "div.filters",
      {},
      field(
        { label: t("evaluation.verdict") },
        select(
          ["", "wrong", "right"].map((one) => [one, t(`evaluation.verdict.${one || "all"}`)]),
          "",
          change("verdict"),
        ),
      ),
      groups.length > 1 &&
        field({ label: t("evaluation.group") }, select([["", t("evaluation.all")], ...groups], "", change("group"))),
      field({ label: t("evaluation.text") }, textInput("", debounce(change("text"), 300), { type: "search" })),
      field(
        { label: t("evaluation.sort") },
        select(
          ["", "worst", "longest", "shortest"].map((one) => [one, t(`evaluation.sort.${one || "file"}`)]),
          "",
          change("sort"),
        ),
      ),
      field(
        { label: t("evaluation.other") },
        select(others, "", (other) => showFlips(flips, other, view)),
      ),
    ),
    flips,
    confusion(first.confusion),
    groupTable(first.groups),
    body,
  );
  drawAnswers(body, first, choice, view, draw);
}

function drawAnswers(body, { total, answers }, choice, view, draw) {
  const turn = (by) => {
    choice.offset = Math.max(0, choice.offset + by);
    draw().then(() => body.querySelector(".pager")?.scrollIntoView({ block: "nearest" }));
  };
  fill(
    body,
    h(
      "div.pager.row",
      {},
      h(
        "p.muted",
        { role: "status" },
        total
          ? t("evaluation.shown", { from: choice.offset + 1, to: choice.offset + answers.length, total })
          : t("evaluation.no_match"),
      ),
      button(t("evaluation.before"), () => turn(-PAGE), {
        symbol: "arrow-left",
        disabled: choice.offset === 0,
        kind: "small",
      }),
      button(t("evaluation.next"), () => turn(PAGE), {
        symbol: "arrow-right",
        disabled: choice.offset + answers.length >= total,
        kind: "small",
      }),
    ),
    h(
      "div.gallery",
      {},
      answers.map((one) => answerCard(one, view.id, view.name)),
    ),
  );
}

function answerCard(one, run, name) {
  const known = one.correct !== null && one.correct !== undefined;
  return h(
    "article.answer.card",
    {},
    (one.images ?? []).map((image, i) =>
      h("img", {
        src: address("evaluation/image", { run, name, index: one.index, image }),
        alt: t("data.picture", { n: i + 1 }),
        loading: "lazy",
      }),
    ),
    h(
      "div.stack-s",
      {},
      h("p", {}, h("strong", {}, one.question)),
      h("p", {}, known && verdict(one.correct), " ", one.answer || t("evaluation.no_answer")),
      !one.correct && h("p.muted", {}, t("evaluation.truth", { truth: String(one.truth ?? "–") })),
      one.missing > 0 && h("p.muted.small", {}, t("evaluation.picture_missing")),
      Object.keys(one.groups ?? {}).length > 0 && h("p.muted.small", {}, Object.values(one.groups).join(" · ")),
      one.other && h("p.muted", {}, t("evaluation.other_answer", { answer: one.other.answer })),
    ),
  );
}

const verdict = (right) =>
  h(
    "span.badge",
    { class: right ? "good" : "bad" },
    icon(right ? "check" : "x"),
    t(right ? "evaluation.is_right" : "evaluation.is_wrong"),
  );

/** Right answers by group, for each way in which the questions are grouped. */
function groupTable(groups) {
  const axes = Object.entries(groups ?? {}).filter(([, values]) => Object.keys(values).length > 1);
  if (axes.length === 0) return null;
  return details(
    t("evaluation.by_group"),
    axes.map(([axis, values]) =>
      h(
        "table.numbers",
        {},
        h("caption", {}, scoreName(axis)),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            [t("evaluation.group"), t("evaluation.right_share"), t("evaluation.questions")].map((one) =>
              h("th", { scope: "col" }, one),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          Object.entries(values).map(([value, { count, right }]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, value),
              h("td", {}, percent(right / count)),
              h("td", {}, number(count)),
            ),
          ),
        ),
      ),
    ),
  );
}

function confusion(table) {
  if (!table) return null;
  const truths = Object.keys(table),
    answers = [...new Set(truths.flatMap((truth) => Object.keys(table[truth])))];
  return details(
    t("evaluation.confusion"),
    h("p.help", {}, t("evaluation.confusion_help")),
    h(
      "div.table-scroll",
      { tabindex: "0", role: "region", "aria-label": t("evaluation.confusion") },
      h(
        "table.numbers",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, t("evaluation.truth_answer")),
            answers.map((one) => h("th", { scope: "col" }, one)),
          ),
        ),
        h(
          "tbody",
          {},
          truths.map((truth) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, truth),
              answers.map((one) => h("td", {}, number(table[truth][one] ?? 0))),
            ),
          ),
        ),
      ),
    ),
  );
}

async function showFlips(place, other, view) {
  if (!other) return fill(place);
  try {
    const { better, worse, counts } = await get(
      "evaluation/flips",
      { run: view.id, other, name: view.name },
      view.signal,
    );
    const part = (title, all) =>
      h(
        "section.card",
        {},
        h("h3", {}, title),
        h(
          "div.gallery",
          {},
          all.slice(0, PAGE).map((one) => answerCard(one, view.id, view.name)),
        ),
        all.length === 0 && h("p.muted", {}, t("evaluation.no_flips")),
      );
    fill(
      place,
      part(t("evaluation.better", { n: counts.better, other }), better),
      part(t("evaluation.worse", { n: counts.worse, other }), worse),
    );
  } catch (problem) {
    if (problem.name !== "AbortError") fill(place, problemNotice(problem));
  }
}
