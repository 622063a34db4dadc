// Windows over the page. The browser's own <dialog> keeps the focus inside, closes by Escape and returns the focus.

import { h, newId } from "../dom.js";
import { t } from "../texts.js";
import { button, iconButton } from "./basic.js";

/** Opens a window; returns it. `close()` of it closes it. */
export function openDialog(title, body, actions = []) {
  const id = newId("dialog");
  const dialog = h(
    "dialog",
    { "aria-labelledby": id, on: { close: () => dialog.remove() } },
    h(
      "header",
      {},
      h("h2", { id }, title),
      iconButton(t("close"), "x", () => dialog.close()),
    ),
    h("div.dialog-body", {}, body),
    actions.length > 0 && h("footer.row.end", {}, actions),
  );
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Asks before something that cannot be undone; whether the person agreed. */
export function confirmed(title, text, { yes, danger = false }) {
  return new Promise((done) => {
    const answer = (value) => {
      done(value);
      dialog.close();
    };
    const dialog = openDialog(title, text, [
      button(t("cancel"), () => answer(false), { autofocus: true }),
      button(yes, () => answer(true), { kind: danger ? "danger" : "primary" }),
    ]);
    dialog.addEventListener("close", () => done(false));
  });
}
