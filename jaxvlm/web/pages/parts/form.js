// Fields with a label, help, and an error of their own.

import { fill, h, newId } from "../dom.js";
import { t } from "../texts.js";
import { icon } from "./basic.js";

/**
 * A field: label, option name, control, help, error.
 * @param {Object} about label, help, why, option (its name in a recipe), hint (defaults and the like)
 * @param {HTMLElement} control gets the id, aria-describedby and aria-invalid
 * @returns {HTMLElement} with `setError(text | null)` and `control`
 */
export function field({ label, help = null, why = null, option = null, hint = null }, control) {
  const id = control.id || newId("field");
  control.id = id;
  const error = h("p.field-error", { id: `${id}-error`, hidden: true });
  const described = [help && `${id}-help`, why && `${id}-why`, hint && `${id}-hint`].filter(Boolean);
  const made = h(
    "div.field",
    {},
    h("div.field-head", {}, h("label", { htmlFor: id }, label), option && h("code.option", { lang: "en" }, option)),
    help && h("p.help", { id: `${id}-help` }, help),
    control,
    error,
    hint && h("p.hint", { id: `${id}-hint` }, hint),
    why && h("p.hint", { id: `${id}-why` }, why),
  );
  made.control = control;
  made.setError = (text) => {
    error.hidden = !text;
    fill(error, text && [icon("circle-alert"), text]);
    if (text) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
    const ids = text ? [...described, error.id] : described;
    if (ids.length) control.setAttribute("aria-describedby", ids.join(" "));
    else control.removeAttribute("aria-describedby");
  };
  made.setError(null);
  return made;
}

/** A line of text. `onInput` gets the text. */
export const textInput = (value, onInput, rest = {}) =>
  h("input", {
    type: "text",
    value: value ?? "",
    autocomplete: "off",
    spellcheck: "false",
    on: { input: (event) => onInput(event.target.value) },
    ...rest,
  });

/** Several lines of text. */
export const textArea = (value, onInput, rest = {}) =>
  h("textarea", { value: value ?? "", on: { input: (event) => onInput(event.target.value) }, ...rest });

/** A list to choose from; `choices`: [[value, label], ...]. `onInput` gets the value. */
export function select(choices, value, onInput, rest = {}) {
  const made = h(
    "select",
    { on: { change: (event) => onInput(choices[event.target.selectedIndex][0]) }, ...rest },
    choices.map(([one, label]) => h("option", { value: String(one), selected: one === value }, label)),
  );
  return made;
}

/** A box to tick, with its label; help below. */
export function checkbox(label, checked, onInput, help = null) {
  const id = newId("check");
  return h(
    "div.check",
    {},
    h("input", {
      type: "checkbox",
      id,
      checked,
      "aria-describedby": help && `${id}-help`,
      on: { change: (event) => onInput(event.target.checked) },
    }),
    h("div", {}, h("label", { htmlFor: id }, label), help && h("p.help", { id: `${id}-help` }, help)),
  );
}

/**
 * Cards of which one is chosen.
 * @param {string} legend name of the group
 * @param {Array} choices {value, title, text, symbol, note, disabled}
 */
export function cards(legend, choices, value, onInput) {
  const name = newId("cards");
  return h(
    "fieldset.cards",
    {},
    h("legend", {}, legend),
    h(
      "div.card-grid",
      {},
      choices.map((one) => {
        const id = newId("card");
        return h(
          "div.choice",
          { class: one.disabled ? "off" : "" },
          h("input", {
            type: "radio",
            name,
            id,
            value: one.value,
            checked: one.value === value,
            disabled: Boolean(one.disabled),
            "aria-describedby": `${id}-text`,
            on: { change: () => onInput(one.value) },
          }),
          h("label", { htmlFor: id }, one.symbol && icon(one.symbol), h("span", {}, one.title)),
          h(
            "p.choice-text",
            { id: `${id}-text` },
            one.text,
            one.note && h("span.note", {}, one.note),
            one.disabled && h("span.note", {}, one.disabled),
          ),
        );
      }),
    ),
  );
}

/** A summary of what is wrong, which takes the focus; `problems`: [{message, go}], go() moves to the place. */
export function errorSummary(problems) {
  const box = h(
    "div.error-summary",
    { role: "alert", tabindex: "-1" },
    h("h2", {}, icon("circle-alert"), t("form.problems", { n: problems.length })),
    h(
      "ul",
      {},
      problems.map(({ message, go }) =>
        h("li", {}, go ? h("button.link", { type: "button", on: { click: go } }, message) : message),
      ),
    ),
  );
  return box;
}

/** How much the curves of charts are smoothed; `set` gets the weight of the values before. */
export function smoothingField(set) {
  const choices = [
    [0, t("curves.smooth.0")],
    [0.8, t("curves.smooth.1")],
    [0.97, t("curves.smooth.2")],
  ];
  return field({ label: t("curves.smoothing") }, select(choices, 0.8, set));
}
