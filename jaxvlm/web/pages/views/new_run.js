// New run: six steps, and the recipe that they write beside them.

import { get, post } from "../api.js";
import { debounce, fill, h } from "../dom.js";
import { announce, button, code, copyButton, heading, icon, problemNotice } from "../parts/basic.js";
import { dropDraft, loadDraft, saveDraft, takeGoal } from "../parts/draft.js";
import { optionLabel } from "../parts/options.js";
import { t } from "../texts.js";
import { dataStep } from "./new_data.js";
import { goalStep, modelStep } from "./new_goal.js";
import { machineStep } from "./new_machine.js";
import { complain, focusKey } from "./new_problems.js";
import { reviewStep } from "./new_review.js";
import { settingsStep } from "./new_settings.js";

const STEPS = [
  { id: "goal", show: goalStep },
  { id: "model", show: modelStep },
  { id: "data", show: dataStep },
  { id: "settings", show: settingsStep },
  { id: "machine", show: machineStep },
  { id: "review", show: reviewStep },
];
const PREVIEW_MS = 300; // after the last key

export async function show(place, { query, session, signal }) {
  const goals = await get("goals", {}, signal);
  const draft = loadDraft();
  const wanted = goals.find((goal) => goal.id === query.get("goal"));
  if (wanted && draft.goal !== wanted.id) {
    takeGoal(draft, wanted);
    draft.step = "goal";
  }
  if (query.get("recipe")) await openRecipe(draft, goals, query.get("recipe"), signal);
  const view = {
    draft,
    goals,
    session,
    signal,
    options: [],
    preview: null,
    summary: h("div", {}),
    body: h("div.step-body", {}),
    shownKeys: new Set(),
  };
  const list = h("ol.steps", {}),
    pane = h("aside.preview", { "aria-labelledby": "preview-title" }),
    foot = h("div.row.between.step-foot", {});

  view.changed = () => {
    saveDraft(draft);
    refresh();
  };
  const refresh = debounce(() => updatePreview(view, pane, list), PREVIEW_MS);
  view.rebase = async () => {
    view.options = draft.base ? (await get("options", { base: draft.base }, signal)).options : [];
    view.changed();
  };
  view.option = (key) => view.options.find((one) => one.key === key);
  view.value = (key) => (key in draft.values ? draft.values[key] : view.option(key)?.value);
  view.go = (id, key = null) => {
    draft.step = id;
    saveDraft(draft);
    drawStep(view, { list, foot }, key);
  };
  view.startAgain = () => {
    dropDraft();
    location.hash = "#/new";
    location.reload();
  };

  fill(
    place,
    heading(t("new.title"), t("new.lead")),
    h("nav", { "aria-label": t("new.steps") }, list),
    h("div.new-grid", {}, h("div.stack", {}, view.summary, view.body, foot), pane),
  );
  await view.rebase();
  await updatePreview(view, pane, list);
  drawStep(view, { list, foot }, null, { first: true });
}

async function openRecipe(draft, goals, path, signal) {
  const { base, values, name } = await get("recipe", { path }, signal);
  if (!base) return;
  const goal = goals.find((one) => one.base === base || (one.sizes ?? []).some((size) => size.base === base));
  Object.assign(draft, {
    goal: goal?.id ?? null,
    stage: goal?.stage ?? null,
    base,
    values,
    name,
    named: true,
    step: "settings",
  });
}

function drawStep(view, { list, foot }, key, { first = false } = {}) {
  const { draft } = view;
  const at = Math.max(
    0,
    STEPS.findIndex((step) => step.id === draft.step),
  );
  const step = STEPS[at];
  view.shownKeys = new Set();
  fill(view.summary);
  const title = h(
    "h2.step-title",
    { tabindex: "-1" },
    t("new.step_title", { n: at + 1, all: STEPS.length, title: t(`new.${step.id}.title`) }),
  );
  const content = h("div.stack", {});
  fill(view.body, title, h("p.help", {}, t(`new.${step.id}.help`)), content);
  drawList(view, list);
  fill(
    foot,
    at > 0 ? button(t("new.back"), () => view.go(STEPS[at - 1].id), { symbol: "arrow-left" }) : h("span", {}),
    at < STEPS.length - 1 &&
      h(
        "button.button.primary",
        { type: "button", id: "next", on: { click: () => next(view, step, STEPS[at + 1]) } },
        h("span", {}, t("new.next", { title: t(`new.${STEPS[at + 1].id}.title`) })),
        icon("arrow-right"),
      ),
  );
  const shown = Promise.resolve(step.show(content, view)).catch((problem) => {
    if (problem.name !== "AbortError") fill(content, problemNotice(problem));
  });
  shown.then(() => {
    markFields(view);
    if (key) focusKey(view, key);
    else if (!first) {
      title.focus();
      scrollTo({ top: 0 });
    }
  });
}

function drawList(view, list) {
  const { draft } = view;
  fill(
    list,
    STEPS.map((step, i) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            "aria-current": step.id === draft.step ? "step" : null,
            disabled: i > 0 && !draft.base,
            on: { click: () => view.go(step.id) },
          },
          h("span.step-number", { "aria-hidden": "true" }, String(i + 1)),
          t(`new.${step.id}.title`),
        ),
      ),
    ),
  );
}

/** Goes on, unless a field of this step is wrong. */
function next(view, step, following) {
  if (!view.draft.base) return complain(view, [{ key: null, message: t("new.choose_goal") }]);
  const here = (view.preview?.problems ?? []).filter((one) => view.shownKeys.has(one.key));
  const typed = [...view.body.querySelectorAll("[aria-invalid=true]")].filter(
    (control) => !here.some((one) => one.key === control.closest(".field").dataset.key),
  );
  const wrong = [
    ...here,
    ...typed.map((control) => ({
      key: control.closest(".field").dataset.key,
      message: `${optionLabel(control.closest(".field").dataset.key)}: ${control.closest(".field").querySelector(".field-error").textContent}`,
    })),
  ];
  if (wrong.length) return complain(view, wrong);
  view.go(following.id);
}

/** Puts the server's problems at their fields. */
function markFields(view) {
  const problems = new Map((view.preview?.problems ?? []).map((one) => [one.key, one.message]));
  for (const made of view.body.querySelectorAll(".field[data-key]")) {
    view.shownKeys.add(made.dataset.key);
    const message = problems.get(made.dataset.key);
    if (message) made.setError(message);
    else if (made.fromServer) made.setError(null);
    made.fromServer = Boolean(message);
  }
}

async function updatePreview(view, pane, list) {
  const { draft, signal } = view;
  if (!draft.base) {
    fill(pane, h("h2", { id: "preview-title" }, t("preview.title")), h("p.muted", {}, t("preview.none")));
    return;
  }
  try {
    view.preview = await post("recipe/preview", { base: draft.base, values: draft.values, name: draft.name }, signal);
  } catch (problem) {
    if (problem.name === "AbortError") return;
    return fill(pane, h("h2", { id: "preview-title" }, t("preview.title")), problemNotice(problem));
  }
  drawPreview(view, pane);
  markFields(view);
  drawList(view, list);
  view.onPreview?.();
}

function drawPreview({ preview, draft, startAgain }, pane) {
  const { text, problems, differences } = preview;
  const focused = pane.contains(document.activeElement);
  if (focused) return; // a person reads or selects in it
  const words = problems.length ? t("preview.problems", { n: problems.length }) : t("preview.ready");
  fill(
    pane,
    h(
      "div.row.between",
      {},
      h("h2", { id: "preview-title" }, t("preview.title")),
      h(
        "span.badge",
        { class: problems.length ? "warn" : "good" },
        icon(problems.length ? "circle-alert" : "circle-check"),
        words,
      ),
    ),
    h("p.help", {}, t("preview.help")),
    code(text, t("preview.title")),
    h("p.muted.small", {}, t("preview.differences", { n: differences.length })),
    h(
      "div.row",
      {},
      copyButton(t("preview.copy"), text, {}),
      button(t("new.again"), startAgain, { kind: "quiet", symbol: "rotate-ccw" }),
    ),
  );
  if (pane.dataset.words !== words) announce(words);
  pane.dataset.words = words;
}
