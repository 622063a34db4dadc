// Choosing a run and one of its checkpoints.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { t } from "../texts.js";
import { field, select } from "./form.js";

/**
 * Fields for run and checkpoint.
 * @param {Object} chosen {run, stage, step} at the start; updated in place
 * @param {Array} runs as api/runs has them
 * @param {Function} onChange called when the choice is complete
 */
export async function checkpointFields(place, chosen, runs, signal, onChange = () => {}) {
  const checkpoints = h("div", {});
  const choose = async (id) => {
    const all = id ? [...(await get("run", { run: id }, signal)).checkpoints].reverse() : [];
    const at = Math.max(
      0,
      all.findIndex((one) => one.stage === chosen.stage && one.step === Number(chosen.step)),
    );
    const take = (one) => {
      Object.assign(chosen, { run: id, stage: one?.stage ?? null, step: one?.step ?? null });
      onChange();
    };
    take(all[at]);
    fill(
      checkpoints,
      all.length
        ? field(
            { label: t("checkpoint.which"), help: t("checkpoint.help") },
            select(
              all.map((one, i) => [i, t("checkpoint.name", { stage: one.stage, step: one.step })]),
              at,
              (i) => take(all[i]),
            ),
          )
        : id && h("p.muted", {}, t("checkpoint.none")),
    );
  };
  const choices = [["", t("checkpoint.choose")], ...runs.map((run) => [run.id, run.id])];
  fill(
    place,
    field(
      { label: t("checkpoint.run") },
      select(choices, chosen.run ?? "", (id) => choose(id)),
    ),
    checkpoints,
  );
  await choose(chosen.run ?? "");
}
