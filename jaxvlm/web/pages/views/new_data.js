// The third step: what the model learns from, looked at before it is used.

import { get, post } from "../api.js";
import { add, fill, h } from "../dom.js";
import { button, details, notice, problemNotice } from "../parts/basic.js";
import { browse } from "../parts/browse.js";
import { draftField } from "../parts/options.js";
import { dataReport, dataSamples } from "../parts/samples.js";
import { followTask } from "../parts/task.js";
import { t } from "../texts.js";

/** Step 3: source, pictures, and a look. */
export function dataStep(place, view) {
  const goal = view.goals.find((one) => one.id === view.draft.goal);
  const needs = (goal?.needs ?? []).filter((need) => need.what === "data" || need.what === "images");
  const report = h("div.stack", {});
  fill(
    place,
    needs.length === 0
      ? notice("good", t("data.built_in"), h("p", {}, t("data.built_in_text")))
      : [needs.map((need) => pathField(need, view)), details(t("data.forms"), forms())],
    h(
      "section.card",
      {},
      h("h3", {}, t("data.look")),
      h("p.help", {}, t("data.look_help")),
      h(
        "div.row",
        {},
        button(t("data.look_do"), () => look(report, view.draft, view.signal), {
          kind: needs.length ? "primary" : "",
          symbol: "eye",
        }),
      ),
      report,
    ),
  );
}

function pathField(need, view) {
  const found = draftField(need.key, view);
  if (!found) return null;
  const { made, take } = found;
  const kind = need.what === "images" ? "folder" : "any";
  return h(
    "section.card",
    {},
    made,
    h(
      "div.row",
      {},
      button(t("browse.open"), () => browse({ title: t(`browse.${need.what}`), kind }, take), {
        symbol: "folder-open",
      }),
    ),
  );
}

const FORMS = ["llava", "llama_factory", "hub", "tfds", "easy_vqa"];
const EXAMPLES = {
  llava: "/data/mine/train.json",
  llama_factory: "/data/LLaMA-Factory/data/dataset_info.json:mllm_demo",
  hub: "hf:HuggingFaceM4/ChartQA:train",
  tfds: "tfds:ai2d:train",
  easy_vqa: "easy_vqa:train",
};

const forms = () =>
  h(
    "dl.facts",
    {},
    FORMS.map((form) => h("div", {}, h("dt", {}, t(`data.form.${form}`)), h("dd", {}, h("code", {}, EXAMPLES[form])))),
  );

/** Checks the data of a draft in a process of its own, and shows what was found: samples first, if there is much. */
export async function look(place, { base, stage, values }, signal) {
  try {
    const { task } = await post("data/check", { base, stage, values });
    const work = h("div", {}),
      samples = h("div.stack", {});
    fill(place, work, samples);
    const ended = await followTask(work, task, t("data.looking"), signal, async () => {
      if (samples.hasChildNodes()) return;
      const report = await get("data/report", { task }, signal).catch(() => ({ samples: [] })); // it may just have failed
      if (report.samples.length > 0) add(samples, dataSamples(report, task));
    });
    if (ended.state === "cancelled") return;
    const report = await get("data/report", { task }, signal).catch((problem) => {
      if (ended.state === "done") throw problem;
      return null;
    });
    if (report) fill(place, dataReport(report, task));
  } catch (problem) {
    if (problem.name !== "AbortError") fill(place, problemNotice(problem));
  }
}
