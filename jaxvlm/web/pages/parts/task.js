// Work that the server does in a process of its own: its progress, its log, its end.

import { get, post } from "../api.js";
import { fill, h, pause } from "../dom.js";
import { ago, t } from "../texts.js";
import { announce, badge, button, code, details, notice, problemNotice, progressBar } from "./basic.js";

const SECONDS = 1; // between two looks

/**
 * Shows a task until it ends.
 * @param {HTMLElement} place is filled
 * @param {string} id of the task
 * @param {string} title what it does, in words
 * @param {Function} meanwhile is called at each look while it runs
 * @returns the task as it ended; done, failed or cancelled
 */
export async function followTask(place, id, title, signal, meanwhile = () => {}) {
  const status = h("div.row", {});
  const bar = h("div", {});
  const log = h("pre.code", { tabindex: "0", role: "region", "aria-label": t("task.log") });
  const stop = button(
    t("task.cancel"),
    () => post("task/cancel", { id }).catch((problem) => place.append(problemNotice(problem))),
    { symbol: "square" },
  );
  fill(place, h("div.task", {}, h("p.task-title", {}, title), status, bar, stop, details(t("task.log"), log)));
  announce(title);
  for (;;) {
    let task;
    try {
      task = await get("task", { id }, signal);
    } catch (problem) {
      if (problem.code !== "unreachable") throw problem;
      await pause(SECONDS * 1000, signal); // the work goes on without the studio
      continue;
    }
    const { n = 0, total = 0, text = "" } = task.progress ?? {};
    fill(
      status,
      badge(task.state),
      h("span.muted", {}, task.state === "running" ? text : t("task.ended", { ago: ago(task.ended) })),
    );
    fill(bar, task.state === "running" && progressBar(title, n, total));
    log.textContent = task.log_tail;
    if (task.state !== "running") {
      stop.remove();
      announce(t(`task.${task.state}`));
      if (task.state === "failed") bar.append(failure(task));
      return task;
    }
    await meanwhile();
    await pause(SECONDS * 1000, signal);
  }
}

/** What a failed task said: its `error:` line if there is one, and the end of its log. */
export function failure(task) {
  const lines = (task.log_tail ?? "").split("\n");
  const line = lines.findLast((one) => /^\w*error:/i.test(one.trim()));
  return notice(
    "bad",
    t("task.failed_code", { code: String(task.code ?? "–") }),
    line && h("p.original", { lang: "en" }, line),
    code(lines.slice(-40).join("\n"), t("task.log")),
  );
}
