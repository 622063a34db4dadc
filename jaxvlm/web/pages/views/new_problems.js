// What is wrong with the recipe of New run, and the way to each place.

import { fill, h } from "../dom.js";
import { notice } from "../parts/basic.js";
import { errorSummary } from "../parts/form.js";
import { optionLabel } from "../parts/options.js";
import { t } from "../texts.js";

/** Lists what is wrong, each with a way to its field. */
export function complain(view, problems) {
  const summary = errorSummary(
    problems.map(({ key, message }) => ({ message, go: key ? () => toKey(view, key) : null })),
  );
  fill(view.summary, summary);
  summary.focus();
}

function toKey(view, key) {
  if (view.body.querySelector(`[data-key="${CSS.escape(key)}"]`)) focusKey(view, key);
  else view.go("settings", key);
}

/** Moves to the field of an option, if it is shown. */
export function focusKey(view, key) {
  const found = view.body.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!found) return;
  found.scrollIntoView({ block: "center" });
  found.control.focus();
}

/** All problems as a notice, with ways to their fields. */
export function problemList(view) {
  const problems = view.preview?.problems ?? [];
  if (problems.length === 0) return null;
  return notice(
    "bad",
    t("form.problems", { n: problems.length }),
    h(
      "ul.plain",
      {},
      problems.map(({ key, message }) =>
        h(
          "li",
          {},
          key
            ? h(
                "button.link",
                { type: "button", on: { click: () => toKey(view, key) } },
                `${optionLabel(key)}: ${message}`,
              )
            : message,
        ),
      ),
    ),
  );
}
