// The fourth step: the settings that matter, and all others by search.

import { debounce, fill, h } from "../dom.js";
import { details, icon } from "../parts/basic.js";
import { setValue } from "../parts/draft.js";
import { field, textInput } from "../parts/form.js";
import { optionField, optionHelp, optionLabel } from "../parts/options.js";
import { t } from "../texts.js";

const SHOWN = 25; // of a search

/** Step 4. */
export function settingsStep(place, view) {
  const goal = view.goals.find((one) => one.id === view.draft.goal);
  const eight = (goal?.eight ?? []).filter((key) => view.option(key));
  const one = (key) => {
    const option = view.option(key);
    return optionField(option, view.value(key), (value) => {
      setValue(view.draft, option, value);
      view.changed();
    });
  };
  const others = Object.keys(view.draft.values).filter((key) => !eight.includes(key) && view.option(key));
  const found = h("div.form-grid", {}),
    count = h("p.muted", { role: "status" });
  const search = (words) => {
    const all = view.options.filter((option) => !eight.includes(option.key) && matches(option, words)).slice(0, 500);
    count.textContent = words
      ? t("all_settings.found", { n: all.length, shown: Math.min(SHOWN, all.length) })
      : t("all_settings.type", { n: view.options.length });
    fill(found, words && all.slice(0, SHOWN).map((option) => one(option.key)));
  };
  search("");
  fill(
    place,
    h(
      "section.card",
      {},
      h("h3", {}, t("settings8.title")),
      h("p.help", {}, t("settings8.help")),
      h("div.form-grid", {}, eight.map(one)),
    ),
    others.length > 0 &&
      h("section.card", {}, h("h3", {}, t("settings8.changed")), h("div.form-grid", {}, others.map(one))),
    h(
      "section.card",
      {},
      h("h3", {}, t("all_settings.title")),
      h("p.help", {}, t("all_settings.help")),
      field({ label: t("all_settings.search") }, textInput("", debounce(search, 200), { type: "search" })),
      count,
      found,
    ),
    details(
      t("settings8.words"),
      h(
        "dl.facts",
        {},
        ["epoch", "batch", "rate", "lora", "token", "heldout"].map((word) =>
          h("div", {}, h("dt", {}, icon("book-open"), " ", t(`word.${word}`)), h("dd", {}, t(`word.${word}_text`))),
        ),
      ),
    ),
  );
}

const matches = (option, words) =>
  words
    .toLowerCase()
    .split(/\s+/)
    .every((word) =>
      `${option.key} ${optionLabel(option.key)} ${option.help ?? ""} ${optionHelp(option) ?? ""}`
        .toLowerCase()
        .includes(word),
    );
