// Starting an evaluation of a checkpoint.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { button, code, details, notice, problemNotice } from "../parts/basic.js";
import { busyNotice } from "../parts/busy.js";
import { checkpointFields } from "../parts/checkpoint.js";
import { field, select, textInput } from "../parts/form.js";
import { followTask } from "../parts/task.js";
import { t } from "../texts.js";

/** A part of the page that opens: benchmark, checkpoint, number of questions, start. */
export function startEvaluation(view) {
  const body = h("div.stack", {});
  if (view.session.read_only) return null;
  const made = details(t("evaluation.start"), body);
  made.addEventListener("toggle", () => {
    if (made.open && !body.hasChildNodes()) form(body, view);
  });
  if (view.step) made.open = true;
  return h("section.card", {}, made);
}

async function form(body, view) {
  try {
    const [suites, busy] = await Promise.all([get("suites", {}, view.signal), busyNotice(view.signal)]);
    const chosen = { run: view.id, stage: view.stage, step: view.step };
    const asked = { suite: "", source: "", limit: 256 };
    const note = h("div", {}),
      source = h("div", {}),
      checkpoint = h("div.filters", {}),
      work = h("div", {});
    const choose = (name) => {
      asked.suite = name;
      const suite = suites.find((one) => one.name === name);
      fill(
        source,
        !name &&
          field(
            { label: t("evaluation.source"), help: t("evaluation.source_help"), option: "evaluation.source" },
            textInput(
              asked.source,
              (text) => {
                asked.source = text.trim();
              },
              { id: "evaluation-source" },
            ),
          ),
      );
      fill(
        note,
        suite &&
          (suite.found
            ? notice("good", t("evaluation.suite_found"))
            : notice(
                "warn",
                t("evaluation.suite_missing", { folder: suite.where }),
                code(suite.needs, t("evaluation.suite_files")),
              )),
      );
    };
    choose("");
    const limit = field(
      { label: t("evaluation.limit"), help: t("evaluation.limit_help") },
      textInput(
        String(asked.limit),
        (text) => {
          asked.limit = text.trim() === "" ? null : Number(text);
        },
        { inputmode: "numeric", id: "evaluation-limit" },
      ),
    );
    fill(
      body,
      field(
        { label: t("evaluation.suite"), help: t("evaluation.suite_help") },
        select(
          [
            ["", t("evaluation.own_test")],
            ...suites.map((one) => [
              one.name,
              one.found ? one.title : t("evaluation.suite_not_here", { name: one.title }),
            ]),
          ],
          "",
          choose,
        ),
      ),
      note,
      source,
      limit,
      checkpoint,
      busy,
      h(
        "div.row",
        {},
        button(t("evaluation.do"), () => begin(work, view, chosen, asked, limit), {
          kind: "primary",
          symbol: "play",
          id: "evaluate",
        }),
      ),
      work,
    );
    await checkpointFields(checkpoint, chosen, [{ id: view.id }], view.signal);
  } catch (problem) {
    if (problem.name !== "AbortError") fill(body, problemNotice(problem));
  }
}

async function begin(work, view, chosen, asked, limit) {
  const wrong = asked.limit !== null && !(Number.isInteger(asked.limit) && asked.limit > 0);
  limit.setError(wrong ? t("option.not_whole", { text: String(asked.limit) }) : null);
  if (wrong) return limit.control.focus();
  try {
    const { task } = await post("evaluate", {
      ...chosen,
      suite: asked.suite,
      source: asked.suite ? "" : asked.source,
      limit: asked.limit,
    });
    const ended = await followTask(work, task, t("evaluation.doing"), view.signal);
    if (ended.state === "done") await view.reload();
  } catch (problem) {
    if (problem.name !== "AbortError") fill(work, problemNotice(problem));
  }
}
