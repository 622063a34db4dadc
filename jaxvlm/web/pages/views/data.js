// Data, looked at without a run.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { button, heading, linkButton, notice, problemNotice } from "../parts/basic.js";
import { browse } from "../parts/browse.js";
import { field, select, textInput } from "../parts/form.js";
import { followTask } from "../parts/task.js";
import { hasText, t } from "../texts.js";
import { look } from "./new_data.js";

export async function show(place, { session, signal }) {
  const goals = (await get("goals", {}, signal)).filter((goal) => goal.available !== false);
  const asked = { goal: goals.find((goal) => goal.id === "quickstart") ?? goals[0], source: "", images: "" };
  const report = h("div.stack", {});
  const source = field(
    { label: t("data.source"), help: t("data.source_help"), option: "data.source" },
    textInput("", (text) => {
      asked.source = text.trim();
    }),
  );
  const images = field(
    { label: t("data.images"), help: t("data.images_help"), option: "data.image_folder" },
    textInput("", (text) => {
      asked.images = text.trim();
    }),
  );
  const pick = (made, part, options) =>
    button(
      t("browse.open"),
      () =>
        browse(options, (path) => {
          made.control.value = path;
          asked[part] = path;
        }),
      { symbol: "folder-open" },
    );
  const recipe = () => {
    const at = (name) => `stage.${asked.goal.stage}.data.${name}`;
    const values = {
      ...(asked.source && { [at("source")]: asked.source }),
      ...(asked.images && { [at("image_folder")]: asked.images }),
    };
    return { base: asked.goal.base, stage: asked.goal.stage, values };
  };
  const title = (goal) => (hasText(`goal.${goal.id}.title`) ? t(`goal.${goal.id}.title`) : goal.id);
  fill(
    place,
    heading(t("data.title"), t("data.lead"), linkButton(t("nav.new"), "#/new", { symbol: "plus" })),
    h(
      "section.card",
      {},
      field(
        { label: t("data.for"), help: t("data.for_help") },
        select(
          goals.map((goal) => [goal, title(goal)]),
          asked.goal,
          (goal) => {
            asked.goal = goal;
          },
        ),
      ),
      source,
      h("div.row", {}, pick(source, "source", { title: t("browse.data") })),
      images,
      h("div.row", {}, pick(images, "images", { title: t("browse.images"), kind: "folder" })),
      h(
        "div.row",
        {},
        button(t("data.look_do"), () => look(report, recipe(), signal), { kind: "primary", symbol: "eye" }),
      ),
    ),
    report,
    !session.read_only && prepareCard(recipe, signal),
  );
}

/** Decodes and resizes all pictures once, into a new folder. */
function prepareCard(recipe, signal) {
  const work = h("div.stack", {});
  let path = "";
  const to = field(
    { label: t("data.prepare_to"), help: t("data.prepare_to_help") },
    textInput("", (text) => {
      path = text.trim();
    }),
  );
  const begin = async () => {
    to.setError(path ? null : t("export.to_missing"));
    if (!path) return to.control.focus();
    try {
      const { task } = await post("data/prepare", { ...recipe(), to: path });
      const ended = await followTask(work, task, t("data.preparing"), signal);
      if (ended.state === "done") work.append(notice("good", t("data.prepared"), h("p", {}, h("code", {}, path))));
    } catch (problem) {
      if (problem.name !== "AbortError") fill(work, problemNotice(problem));
    }
  };
  return h(
    "section.card",
    {},
    h("h2", {}, t("data.prepare")),
    h("p.help", {}, t("data.prepare_help")),
    to,
    h("div.row", {}, button(t("data.prepare_do"), begin, { symbol: "database" })),
    work,
  );
}
