// Small pieces that every view uses: icons, buttons, states, notices, progress.

import { h, newId } from "../dom.js";
import { hasText, t } from "../texts.js";
import { ICONS } from "../vendor/lucide/icons.js";

const SVG = "http://www.w3.org/2000/svg";

/** An icon; decoration only, its label tells the same. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [
    ["viewBox", "0 0 24 24"],
    ["aria-hidden", "true"],
    ["class", "icon"],
  ])
    svg.setAttribute(key, value);
  for (const [tag, attributes] of ICONS[name]) {
    const part = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
    svg.append(part);
  }
  return svg;
}

/** A button. `kind`: "" or "primary", "danger", "quiet". */
export function button(label, action, { kind = "", symbol = null, ...rest } = {}) {
  return h(
    "button.button",
    { type: "button", class: kind, on: { click: action }, ...rest },
    symbol && icon(symbol),
    h("span", {}, label),
  );
}

/** A button with an icon alone; `label` is its name. */
export function iconButton(label, symbol, action, rest = {}) {
  return h(
    "button.button.quiet.square",
    { type: "button", "aria-label": label, title: label, on: { click: action }, ...rest },
    icon(symbol),
  );
}

/** A link that looks like a button. */
export const linkButton = (label, href, { kind = "", symbol = null, ...rest } = {}) =>
  h("a.button", { href, class: kind, ...rest }, symbol && icon(symbol), h("span", {}, label));

const STATES = {
  queued: ["list-ordered", "calm"],
  starting: ["loader-circle", "busy"],
  compiling: ["loader-circle", "busy"],
  training: ["activity", "busy"],
  saving: ["save", "busy"],
  evaluating: ["clipboard-check", "busy"],
  done: ["circle-check", "good"],
  paused: ["circle-pause", "calm"],
  stopped: ["circle-stop", "calm"],
  mistake: ["circle-alert", "bad"],
  crashed: ["circle-x", "bad"],
  killed: ["octagon-x", "bad"],
  silent: ["hourglass", "warn"],
  lost: ["ghost", "warn"],
  elsewhere: ["cloud", "calm"],
  running: ["loader-circle", "busy"],
  failed: ["circle-x", "bad"],
  cancelled: ["circle-stop", "calm"],
  ready: ["circle-check", "good"],
};

/** States in which a run's numbers still move. */
export const MOVING = new Set(["starting", "compiling", "training", "saving", "evaluating", "silent"]);

/** A state as icon and word. */
export function badge(state) {
  const [symbol, mood] = STATES[state] ?? ["info", "calm"];
  const words = hasText(`state.${state}`) ? t(`state.${state}`) : state;
  return h("span.badge", { class: mood, data: { state } }, icon(symbol), words);
}

const NOTICES = { info: "info", warn: "triangle-alert", bad: "circle-alert", good: "circle-check" };

/** A boxed sentence or more. `kind`: info, warn, bad or good. */
export function notice(kind, title, ...rest) {
  return h(
    "div.notice",
    { class: kind, role: kind === "bad" ? "alert" : null },
    icon(NOTICES[kind]),
    h("div.stack-s", {}, title && h("strong", {}, title), rest),
  );
}

/** What stands where nothing is yet: why, and what to do. */
export function empty(symbol, title, text, ...actions) {
  return h(
    "div.empty",
    {},
    icon(symbol),
    h("p.empty-title", {}, title),
    text && h("p.muted", {}, text),
    actions.length > 0 && h("div.row.center", {}, actions),
  );
}

/** An error of the server in the page's language, with the original words below. */
export function problemNotice(problem) {
  const known = hasText(`problem.${problem.code}`);
  const words = known ? t(`problem.${problem.code}`) : t("problem.other");
  return notice("bad", words, problem.message && h("p.original", { lang: "en" }, problem.message));
}

/** Says that the studio does not answer for now. */
export const disconnected = () => notice("warn", t("disconnected"), h("p", {}, t("disconnected_text")));

/** A bar from 0 to total, or an endless one without a total; `label` is its name. */
export function progressBar(label, value, total) {
  const bar = h("progress", { max: total || 1, "aria-label": label });
  if (total) bar.value = Math.min(value, total);
  return bar;
}

/** Says that something is being fetched. */
export const loading = () => h("p.loading", { role: "status" }, icon("loader-circle"), t("loading"));

/** A button that puts a text on the clipboard. */
export function copyButton(label, text, rest = {}) {
  const words = h("span", {}, label);
  const made = h("button.button", { type: "button", ...rest }, icon("copy"), words);
  made.addEventListener("click", async () => {
    await copy(typeof text === "function" ? text() : text);
    words.textContent = t("copied");
    announce(t("copied"));
    setTimeout(() => {
      words.textContent = label;
    }, 2000);
  });
  return made;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain HTTP from another machine there is no clipboard object.
  const area = h("textarea", { value: text, "aria-hidden": "true", class: "off-screen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Saves a text as a file of the browser's. */
export function download(name, text, type = "text/plain") {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Tells a screen reader, politely. */
export function announce(text) {
  const place = document.getElementById("announcements");
  if (place && place.textContent !== text) place.textContent = text;
}

/** A section with a heading. */
export function section(title, ...children) {
  const id = newId("section");
  return h("section.card", { "aria-labelledby": id }, h("h2", { id }, title), children);
}

/** The head of a view: title, a sentence, actions at the right. */
export function heading(title, lead = null, ...actions) {
  return h(
    "header.page-head",
    {},
    h("div", {}, h("h1", { tabindex: "-1" }, title), lead && h("p.lead", {}, lead)),
    actions.length > 0 && h("div.row", {}, actions),
  );
}

/** Text that opens: a summary and what it hides. */
export const details = (summary, ...children) =>
  h("details", {}, h("summary", {}, icon("chevron-right"), summary), h("div.details-body", {}, children));

/** Pairs of a name and a value. */
export const facts = (pairs) =>
  h(
    "dl.facts",
    {},
    pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );

/** Lines of code or log, scrollable by keyboard. */
export const code = (text, label) => h("pre.code", { tabindex: "0", role: "region", "aria-label": label }, text);
