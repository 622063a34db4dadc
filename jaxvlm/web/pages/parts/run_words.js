// A run in words: what it does now, how far it is, and what a person can do.

import { h } from "../dom.js";
import { duration, hasText, number, t } from "../texts.js";
import { progressBar } from "./basic.js";

/** The address of a run's view. */
export const runLink = (id, query = "") => `#/run/${id.split("/").map(encodeURIComponent).join("/")}${query}`;

/** The address of another view about a run, such as "evaluation". */
export const viewLink = (view, id, query = {}) => {
  const words = new URLSearchParams(query).toString();
  return `#/${view}/${id.split("/").map(encodeURIComponent).join("/")}${words ? `?${words}` : ""}`;
};

/** One sentence on the state, with the numbers that belong to it. */
export function stateSentence(run) {
  const values = {
    stage: run.stage ?? "–",
    step: run.step ?? 0,
    steps: run.steps ?? "?",
    host: run.host ?? "–",
    seconds: duration(run.phase_seconds),
    place: run.queue_place ?? 1,
    code: String(run.exit?.code ?? "–"),
    signal: String(run.exit?.signal ?? "–"),
    silent: duration(Date.now() / 1000 - run.updated),
  };
  const key = `run.says.${run.state}`;
  return hasText(key) ? t(key, values) : "";
}

/** Step, total and time left, above a bar. */
export function progress(run) {
  const total = run.steps ?? 0;
  const step = run.state === "done" ? total || run.step || 0 : (run.step ?? 0);
  const words = total ? t("run.steps", { step, steps: total }) : t("run.step_only", { step });
  return h(
    "div.progress-cell",
    {},
    h("span.numbers", {}, step || total ? words : "–"),
    run.eta_seconds ? h("span.muted", {}, t("run.left", { time: duration(run.eta_seconds) })) : null,
    total > 0 && progressBar(words, step, total),
  );
}

/** A metric's name in words. */
export const metricName = (name) => (hasText(`metric.${name}`) ? t(`metric.${name}`) : name);

/** The newest loss, and held-out loss below. */
export const losses = (run) =>
  h(
    "div.stack-0",
    {},
    h("span.numbers", {}, number(run.loss)),
    run.heldout_loss !== null &&
      run.heldout_loss !== undefined &&
      h("span.muted.numbers", {}, t("run.heldout_short", { value: number(run.heldout_loss) })),
  );
