// The token that the command printed, exchanged for a cookie.

import { post } from "../api.js";
import { fill, h } from "../dom.js";
import { button, heading, problemNotice } from "../parts/basic.js";
import { field, textInput } from "../parts/form.js";
import { t } from "../texts.js";

export async function show(place, { onLogin }) {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", "#/"); // so that it stays in no history
    try {
      await post("login", { token: given });
      return onLogin();
    } catch (problem) {
      return ask(place, onLogin, problem);
    }
  }
  return ask(place, onLogin, null);
}

function ask(place, onLogin, problem) {
  let token = "";
  const input = field(
    { label: t("login.token"), help: t("login.token_help") },
    textInput(
      "",
      (text) => {
        token = text.trim();
      },
      { type: "password", name: "token", autocomplete: "current-password" },
    ),
  );
  const errors = h("div", {}, problem && problemNotice(problem));
  const form = h(
    "form.narrow.card",
    {
      on: {
        submit: async (event) => {
          event.preventDefault();
          input.setError(token ? null : t("login.missing"));
          if (!token) return input.control.focus();
          try {
            // The whole printed address may be pasted too.
            await post("login", { token: token.includes("token=") ? token.split("token=").at(-1) : token });
            await onLogin();
          } catch (error) {
            fill(errors, problemNotice(error));
          }
        },
      },
    },
    errors,
    input,
    button(t("login.enter"), () => {}, { kind: "primary", type: "submit" }),
  );
  fill(place, heading(t("login.title"), t("login.lead")), form);
}
