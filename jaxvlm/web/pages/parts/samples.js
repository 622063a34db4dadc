// Records as the model will get them: pictures, and every token; those that it learns to write are marked.

import { h } from "../dom.js";
import { number, t } from "../texts.js";
import { details, facts, icon, notice } from "./basic.js";

const PROBLEMS = 50; // shown at most
const FIRST = 4; // samples; the others open

const here = (relative) => new URL(relative, document.baseURI.split("#")[0]).href;

/** A report of the data: problems first, then samples, then counts. */
export function dataReport(report, task) {
  const { problems = [], samples = [], counts } = report;
  return h(
    "div.stack",
    {},
    problems.length > 0
      ? notice(
          "bad",
          t("data.problems", { n: problems.length }),
          h("ul.plain.problems", { lang: "en" }, problems.slice(0, PROBLEMS).map(problem)),
        )
      : notice("good", t("data.no_problems")),
    samples.length > 0 && dataSamples(report, task),
    counts && details(t("data.counts"), facts(flat(counts))),
    report.lengths &&
      details(
        t("data.lengths"),
        h("p.help", {}, t("data.lengths_help")),
        h("img", { src: here(report.lengths), alt: t("data.lengths"), loading: "lazy" }),
      ),
    report.page &&
      details(
        t("data.page"),
        h("iframe.report", { src: here(report.page), sandbox: "", title: t("data.page"), loading: "lazy" }),
      ),
  );
}

/** The samples of a report, which are there before all records have been read. */
export function dataSamples(report, task) {
  const { samples } = report;
  const some = (chosen) =>
    h(
      "div.samples",
      {},
      chosen.map((one) => sample(one, report, task)),
    );
  return [
    h("h3", {}, t("data.samples", { n: samples.length })),
    h("p.help", {}, t("data.samples_help")),
    h("p.row", {}, h("mark", {}, t("data.legend_trained")), h("span.untrained", {}, t("data.legend_read"))),
    some(samples.slice(0, FIRST)),
    samples.length > FIRST &&
      details(t("data.more_samples", { n: samples.length - FIRST }), some(samples.slice(FIRST))),
  ];
}

function problem({ line, origin, message }) {
  const where = [line && t("data.line", { line }), origin].filter(Boolean).join(" · ");
  return h("li", {}, h("strong", {}, where), " ", h("span.original", {}, message));
}

/** Numbers of a nested report, each with its path. */
function flat(table, prefix = "") {
  return Object.entries(table).flatMap(([name, value]) => {
    const path = `${prefix}${name.replaceAll("_", " ")}`;
    if (typeof value === "number") return [[path, number(value)]];
    if (typeof value === "string") return [[path, value]];
    return value && !Array.isArray(value) && typeof value === "object" ? flat(value, `${path} · `) : [];
  });
}

function sample(one, report, task) {
  const base = report.picture ?? `api/data/picture?task=${encodeURIComponent(task)}&name=`;
  const picture = (name) => here(`${base}${encodeURIComponent(name)}`);
  const tokens = one.tokens ?? [];
  const pictures = [...new Set(tokens.map((token) => token.picture).filter(Boolean))];
  return h(
    "article.sample",
    {},
    pictures.length > 0 &&
      h(
        "div.sample-pictures",
        {},
        pictures.map((name, i) =>
          h("img", { src: picture(name), alt: t("data.picture", { n: i + 1 }), loading: "lazy" }),
        ),
      ),
    h(
      "p.flow",
      { lang: "en" },
      joined(tokens).map((part) =>
        part.picture
          ? pictureChip(part)
          : h(part.trained ? "mark" : "span", { class: part.control ? "control" : "" }, part.text),
      ),
    ),
    details(t("data.tokens", { n: tokens.reduce((sum, token) => sum + (token.count ?? 1), 0) }), tokenChips(tokens)),
    one.origin && h("p.muted.small", {}, one.origin),
  );
}

/** Tokens in a row that are learned, or read, as one text. */
function joined(tokens) {
  const parts = [];
  for (const token of tokens) {
    const last = parts.at(-1);
    const same =
      last &&
      !last.picture &&
      !token.picture &&
      Boolean(last.trained) === Boolean(token.trained) &&
      Boolean(last.control) === Boolean(token.control);
    if (same) last.text += token.text;
    else parts.push({ ...token });
  }
  return parts;
}

const pictureChip = (token) =>
  h("span.picture-chip", {}, icon("image"), t("data.picture_tokens", { n: token.count ?? 1 }));

/** Tokens one by one; those that are trained on are marked. */
export const tokenChips = (tokens) =>
  h(
    "p.tokens",
    { lang: "en" },
    tokens.map((token) =>
      token.picture === undefined
        ? h(
            token.trained ? "mark" : "span",
            { class: token.control ? "control" : "", title: token.id === undefined ? null : String(token.id) },
            token.text,
          )
        : pictureChip(token),
    ),
  );
