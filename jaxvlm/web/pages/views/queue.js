// Queue: runs that wait for the device, and other work of the studio.

import { get, post } from "../api.js";
import { fill, h, pause } from "../dom.js";
import {
  announce,
  badge,
  button,
  empty,
  heading,
  iconButton,
  linkButton,
  problemNotice,
  progressBar,
} from "../parts/basic.js";
import { confirmed } from "../parts/dialog.js";
import { runLink } from "../parts/run_words.js";
import { ago, hasText, t } from "../texts.js";

const SECONDS = 3; // between two looks

export async function show(place, { session, signal }) {
  const waiting = h("div", {}),
    tasks = h("div", {}),
    problems = h("div", {});
  fill(
    place,
    heading(t("queue.title"), t("queue.lead")),
    problems,
    waiting,
    h("section.card", {}, h("h2", {}, t("queue.tasks")), h("p.help", {}, t("queue.tasks_help")), tasks),
  );
  const act = (path, body, said) => async () => {
    try {
      await post(path, body);
      announce(said);
      fill(problems);
    } catch (problem) {
      fill(problems, problemNotice(problem));
    }
    await draw();
  };
  const draw = async () => {
    const [queue, all] = await Promise.all([get("queue", {}, signal), get("tasks", {}, signal)]);
    if (!waiting.contains(document.activeElement) || !waiting.hasChildNodes()) drawQueue(waiting, queue, session, act);
    else requestAnimationFrame(() => keepFocus(waiting, () => drawQueue(waiting, queue, session, act)));
    drawTasks(tasks, all.tasks, session, act);
  };
  await draw();
  for (;;) {
    await pause(SECONDS * 1000, signal);
    try {
      await draw();
    } catch (problem) {
      if (problem.name === "AbortError") return; // else: the studio is being started again; what is shown stays
    }
  }
}

function keepFocus(place, drawAgain) {
  const label = document.activeElement.getAttribute("aria-label");
  drawAgain();
  (place.querySelector(`[aria-label="${CSS.escape(label ?? "")}"]`) ?? document.querySelector("h1"))?.focus();
}

const kindName = ({ kind }) => (hasText(`task.kind.${kind}`) ? t(`task.kind.${kind}`) : kind);

function drawQueue(place, { items, running }, session, act) {
  if (items.length + running.length === 0) {
    return fill(
      place,
      empty(
        "list-ordered",
        t("queue.none"),
        t("queue.none_text"),
        linkButton(t("nav.new"), "#/new", { symbol: "plus" }),
      ),
    );
  }
  fill(
    place,
    h(
      "ol.queue",
      {},
      running.map((one) =>
        h(
          "li.card",
          {},
          h(
            "div.row.between",
            {},
            one.kind === "run" ? h("a", { href: runLink(one.name) }, one.name) : h("span", {}, kindName(one)),
            badge("running"),
          ),
        ),
      ),
      items.map((item, i) =>
        h(
          "li.card",
          {},
          h(
            "div.row.between",
            {},
            h(
              "div.row",
              {},
              h("span.numbers.muted", {}, t("queue.place", { place: i + 1 })),
              h("a", { href: runLink(item.run) }, item.run),
            ),
            !session.read_only &&
              h(
                "div.row",
                {},
                iconButton(
                  t("queue.up", { name: item.run }),
                  "arrow-up",
                  act("queue/move", { id: item.id, place: i }, t("queue.moved")),
                  { disabled: i === 0 },
                ),
                iconButton(
                  t("queue.down", { name: item.run }),
                  "arrow-down",
                  act("queue/move", { id: item.id, place: i + 2 }, t("queue.moved")),
                  { disabled: i === items.length - 1 },
                ),
                iconButton(t("queue.remove", { name: item.run }), "trash", async () => {
                  if (
                    await confirmed(t("queue.remove_title"), h("p", {}, t("queue.remove_text", { name: item.run })), {
                      yes: t("queue.remove_yes"),
                    })
                  )
                    await act("queue/remove", { id: item.id }, t("queue.removed"))();
                }),
              ),
          ),
        ),
      ),
    ),
  );
}

function drawTasks(place, all, session, act) {
  if (all.length === 0) return fill(place, h("p.muted", {}, t("queue.no_tasks")));
  fill(
    place,
    h(
      "ul.plain",
      {},
      all.map((task) =>
        h(
          "li.row.between",
          {},
          h(
            "div.row",
            {},
            badge(task.state),
            h("span", {}, kindName(task)),
            task.about?.run && h("a", { href: runLink(task.about.run) }, task.about.run),
            h("span.muted.small", {}, ago(task.started)),
          ),
          task.state === "running" &&
            h(
              "div.row",
              {},
              task.progress?.total > 0 && progressBar(kindName(task), task.progress.n, task.progress.total),
              !session.read_only &&
                button(t("task.cancel"), act("task/cancel", { id: task.id }, t("task.cancelled")), {
                  kind: "small",
                  symbol: "square",
                  "aria-label": t("queue.cancel", { kind: kindName(task) }),
                }),
            ),
        ),
      ),
    ),
  );
}
