// The first two steps: what is to be reached, and with which model.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { button, details, facts, notice } from "../parts/basic.js";
import { browse } from "../parts/browse.js";
import { takeGoal } from "../parts/draft.js";
import { cards, field, select } from "../parts/form.js";
import { draftField } from "../parts/options.js";
import { duration, hasText, t } from "../texts.js";

const SYMBOLS = { picture: "images", text: "type", preference: "thumbs-up" };
const groupOf = (goal) => (goal.minutes_cpu ? "try" : goal.kind);

const goalTitle = (goal) => (hasText(`goal.${goal.id}.title`) ? t(`goal.${goal.id}.title`) : goal.id);
const goalText = (goal) => (hasText(`goal.${goal.id}.text`) ? t(`goal.${goal.id}.text`) : goal.base);

/** Step 1: cards of goals, those that anyone can try first. */
export async function goalStep(place, view) {
  const { draft, goals } = view;
  const choose = async (id) => {
    takeGoal(
      draft,
      goals.find((goal) => goal.id === id),
    );
    await view.rebase();
  };
  const order = (goal) => (goal.id === "quickstart" ? 0 : 1);
  fill(
    place,
    ["try", "picture", "text", "preference"].map((group) => {
      const inGroup = goals.filter((goal) => groupOf(goal) === group).sort((a, b) => order(a) - order(b));
      if (inGroup.length === 0) return null;
      return cards(
        t(`goal.group.${group}`),
        inGroup.map((goal) => ({
          value: goal.id,
          title: goalTitle(goal),
          text: goalText(goal),
          symbol: goal.id === "quickstart" ? "graduation-cap" : SYMBOLS[goal.kind],
          note: goal.minutes_cpu ? t("goal.minutes", { time: duration(goal.minutes_cpu * 60) }) : null,
          disabled: goal.available === false ? t("goal.not_available", { why: goal.why }) : null,
        })),
        draft.goal,
        choose,
      );
    }),
  );
  const saved = await get("recipes", {}, view.signal);
  const own = (saved.recipes ?? []).filter((one) => one.own ?? one.editable);
  place.append(
    details(
      t("goal.open"),
      own.length ? savedRecipes(own) : h("p.muted", {}, t("goal.open_none", { folder: saved.looked_in })),
    ),
  );
}

function savedRecipes(own) {
  return h(
    "ul.plain",
    {},
    own.map((one) =>
      h(
        "li",
        {},
        one.editable
          ? h("a", { href: `#/new?${new URLSearchParams({ recipe: one.path })}` }, one.name ?? one.path)
          : [h("code", {}, one.name ?? one.path), " ", h("span.muted", {}, one.problem ?? t("goal.own_logic"))],
        one.title && h("span.muted", {}, ` ${one.title}`),
      ),
    ),
  );
}

/** Step 2: the model's size, and what it starts from. */
export async function modelStep(place, view) {
  const { draft, goals } = view;
  const goal = goals.find((one) => one.id === draft.goal);
  const sizes = goal?.sizes ?? [];
  const redraw = () => modelStep(place, view);
  const chooseSize = async (base) => {
    draft.base = base;
    await view.rebase();
    await redraw();
  };
  const needs = goal?.needs ?? [];
  const keys = needs.filter((need) => need.what === "weights" || need.what === "run");
  const packages = needs.filter((need) => need.what === "package").map((need) => need.key);
  const runs = keys.some((need) => need.what === "run") ? (await get("runs", {}, view.signal)).runs : [];
  fill(
    place,
    sizes.length > 1
      ? cards(
          t("model.size"),
          sizes.map((size) => ({
            value: size.base,
            title: t("model.parameters", { size: size.parameters }),
            text: size.name,
          })),
          draft.base,
          chooseSize,
        )
      : null,
    h(
      "section.card",
      {},
      h("h3", {}, t("model.about")),
      h("p", {}, familyText(goal)),
      facts([
        [t("model.base"), h("code", {}, draft.base)],
        sizes.length === 1 && [t("model.size"), t("model.parameters", { size: sizes[0].parameters })],
      ]),
    ),
    packages.length > 0 &&
      notice(
        "info",
        t("model.packages"),
        h("p", {}, t("model.packages_text")),
        h(
          "p",
          {},
          packages.map((name) => [h("code", {}, name), " "]),
        ),
      ),
    keys.length === 0 && notice("good", t("model.nothing"), h("p", {}, t("model.nothing_text"))),
    keys.map((need) => sourceField(need, runs, view)),
  );
}

const familyText = (goal) => {
  const family = goal?.family ?? "text";
  return hasText(`family.${family}`) ? t(`family.${family}`) : family;
};

/** A field for weights: a folder, a name on the hub, or an earlier run. */
function sourceField(need, runs, view) {
  const found = draftField(need.key, view);
  if (!found) return null;
  const { made, take } = found;
  const choices = runs.filter((run) => run.path).map((run) => [run.path, run.id]);
  return h(
    "section.card",
    {},
    h("p.help", {}, t(`model.need.${need.what}`)),
    made,
    h(
      "div.row",
      {},
      button(t("browse.open"), () => browse({ title: t("browse.weights"), kind: "any" }, take), {
        symbol: "folder-open",
      }),
      need.what === "run" &&
        choices.length > 0 &&
        field(
          { label: t("model.earlier_run") },
          select([["", "–"], ...choices], "", (path) => path && take(path)),
        ),
    ),
  );
}
