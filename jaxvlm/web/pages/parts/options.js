// Fields made from the options of a recipe.

import { h, newId } from "../dom.js";
import { chosenLanguage, optionText, t } from "../texts.js";
import { setValue } from "./draft.js";
import { field, select, textInput } from "./form.js";

const NUMBERS = new Set(["int", "float"]);

/** A value as it is typed: JSON for lists and tables, "" for none. */
const typed = (value) =>
  value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);

/** What was typed, as a value of the option; throws a sentence if it is none. */
export function parseOption(option, text) {
  const trimmed = text.trim();
  if (trimmed === "" && option.can_be_none) return null;
  if (NUMBERS.has(option.type)) {
    const value = Number(trimmed);
    if (trimmed === "" || !Number.isFinite(value)) throw new Error(t("option.not_number", { text }));
    if (option.type === "int" && !Number.isInteger(value)) throw new Error(t("option.not_whole", { text }));
    return value;
  }
  if (option.type === "str") return text;
  try {
    return JSON.parse(trimmed);
  } catch {
    throw new Error(t("option.not_json", { text }));
  }
}

/** The option's name in words; the last word of its path where there are none. */
export const optionLabel = (key) => optionText(key).label ?? key.split(".").at(-1).replaceAll("_", " ");

/** The option's help in the chosen language; English comes from configs/base.py itself. */
export const optionHelp = (option) =>
  chosenLanguage() === "en" ? option.help : (optionText(option.key).help ?? option.help);

/**
 * A field of an option.
 * @param {any} value what it is set to now
 * @param {Function} onValue gets the value when it is one
 */
export function optionField(option, value, onValue) {
  const made = field(
    {
      label: optionLabel(option.key),
      option: option.key,
      help: optionHelp(option),
      why: optionText(option.key).why,
      hint: hint(option),
    },
    control(option, value, (text) => {
      try {
        const parsed = typeof text === "string" && option.type !== "bool" ? parseOption(option, text) : text;
        made.setError(null);
        onValue(parsed);
      } catch (error) {
        made.setError(error.message);
      }
    }),
  );
  made.dataset.key = option.key;
  return made;
}

function control(option, value, onInput) {
  if (option.type === "bool") {
    return h("input", {
      type: "checkbox",
      checked: value === true,
      on: { change: (event) => onInput(event.target.checked) },
    });
  }
  const choices = option.choices ?? [];
  if (choices.length && !option.is_open) {
    const all = choices.includes(value) ? choices : [value, ...choices];
    return select(
      [...(option.can_be_none ? [[null, t("option.none")]] : []), ...all.map((one) => [one, String(one)])],
      value,
      onInput,
    );
  }
  const rest = NUMBERS.has(option.type) ? { inputmode: "decimal" } : {};
  const input = textInput(typed(value), onInput, rest);
  if (choices.length === 0) return input;
  const id = newId("choices");
  input.setAttribute("list", id);
  return withList(input, id, choices);
}

// A datalist must stand in the page; a hidden wrapper would break label/for, so it goes behind the field later.
function withList(input, id, choices) {
  queueMicrotask(() =>
    input.after(
      h(
        "datalist",
        { id },
        choices.map((one) => h("option", { value: String(one) })),
      ),
    ),
  );
  return input;
}

function hint(option) {
  const base = option.value === "" ? t("option.empty") : typed(option.value) || t("option.none");
  const choices = (option.choices ?? []).length ? t("option.choices", { choices: option.choices.join(", ") }) : null;
  return [t("option.recipe_has", { value: base }), choices].filter(Boolean).join(" · ");
}

/** The field of an option of New run, and `take(value)`, which fills it; null if the base has no such option. */
export function draftField(key, view) {
  const option = view.option(key);
  if (!option) return null;
  const set = (value) => {
    setValue(view.draft, option, value);
    view.changed();
  };
  const made = optionField(option, view.value(key), set);
  const take = (value) => {
    made.control.value = value;
    set(value);
  };
  return { made, take };
}
