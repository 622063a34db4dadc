// One run: its state in words, what can be done about it, and tabs for the rest.

import { get, post } from "../api.js";
import { fill, h, pause } from "../dom.js";
import {
  announce,
  badge,
  button,
  code,
  details,
  disconnected,
  facts,
  heading,
  linkButton,
  notice,
  problemNotice,
  progressBar,
} from "../parts/basic.js";
import { confirmed } from "../parts/dialog.js";
import { Curves, watchRun } from "../parts/metrics.js";
import { runLink, stateSentence, viewLink } from "../parts/run_words.js";
import { tabs } from "../parts/tabs.js";
import { dateTime, duration, number, t } from "../texts.js";
import { checkpointsTab, filesTab, logTab, settingsTab } from "./run_tabs.js";
import { curvesTab, mainCurve } from "./run_curves.js";

const KILL_AFTER_SECONDS = 15; // of a stop that was asked for
const CLOCK_SECONDS = 5;

export async function show(place, { id, query, session, signal }) {
  const [run, curves] = await Promise.all([get("run", { run: id }, signal), Curves.load(id, signal)]);
  const view = {
    id,
    run,
    curves,
    session,
    signal,
    connected: true,
    stopAsked: 0,
    drawn: { state: "", tenth: -1 },
    redrawCurves: () => {},
  };
  const head = h("div.run-head", {});
  const inTabs = [
    { id: "overview", title: t("run.tab.overview"), show: (panel) => overview(panel, view) },
    { id: "curves", title: t("run.tab.curves"), show: (panel) => curvesTab(panel, view) },
    { id: "files", title: t("run.tab.files"), show: (panel) => filesTab(panel, view) },
    { id: "checkpoints", title: t("run.tab.checkpoints"), show: (panel) => checkpointsTab(panel, view) },
    { id: "log", title: t("run.tab.log"), show: (panel) => logTab(panel, view) },
    { id: "settings", title: t("run.tab.settings"), show: (panel) => settingsTab(panel, view) },
  ];
  document.title = `${id} · jaxvlm studio`;
  const all = tabs(t("run.tabs"), inTabs, query.get("tab") ?? "overview", (tab) => {
    view.tab = tab;
    history.replaceState(null, "", runLink(id, tab === "overview" ? "" : `?tab=${tab}`));
  });
  view.drawHead = () => drawHead(head, view);
  view.drawHead();
  fill(
    place,
    h("nav.crumbs", { "aria-label": t("nav.where") }, h("a", { href: "#/" }, t("nav.home")), " / ", h("span", {}, id)),
    head,
    all,
  );
  watchRun(
    id,
    curves,
    {
      state: (next) => changed(view, next, all),
      curves: (next) => {
        view.curves = next;
        view.redrawCurves();
      },
      connected: (yes) => {
        if (view.connected !== yes) {
          view.connected = yes;
          view.drawHead();
        }
      },
      gone: (problem) => fill(place, heading(id), problemNotice(problem)),
    },
    signal,
  );
  keepTime(head, view).catch(() => {}); // ends with the view
}

/** How long a run has been silent grows, though nothing is heard of it. */
async function keepTime(head, view) {
  for (;;) {
    await pause(CLOCK_SECONDS * 1000, view.signal);
    if (view.run.state === "silent") head.querySelector(".says").textContent = stateSentence(view.run);
  }
}

function changed(view, next, all) {
  const before = view.run;
  view.run = next;
  view.drawHead();
  const tenth = next.steps ? Math.floor((10 * next.step) / next.steps) : -1;
  // A screen reader hears the state and each tenth, not each step.
  if (next.state !== view.drawn.state || tenth !== view.drawn.tenth) announce(stateSentence(next));
  view.drawn = { state: next.state, tenth };
  const parts = ["checkpoints", "files", "ledger", "error", "stages"];
  const differs = parts.some((part) => JSON.stringify(before[part]) !== JSON.stringify(next[part]));
  if (view.tab === "overview") view.redrawOverview?.();
  else if (differs && ["checkpoints", "files"].includes(view.tab)) all.choose(view.tab);
}

function drawHead(head, view) {
  const { run } = view;
  const focused = head.contains(document.activeElement) ? document.activeElement.dataset.action : null;
  fill(
    head,
    heading(run.name ?? view.id, null, ...actions(head, view)),
    h("div.run-state", {}, badge(run.state), h("p.says", {}, stateSentence(run))),
    progressLine(run),
    !view.connected && disconnected(),
    trouble(run),
    h(
      "div",
      {
        ref: (node) => {
          view.messages = node;
        },
      },
      view.message,
    ),
  );
  if (focused) (head.querySelector(`[data-action="${focused}"]`) ?? head.querySelector("h1")).focus();
}

function progressLine(run) {
  if (!run.steps) return null;
  const step = run.state === "done" ? run.steps : (run.step ?? 0);
  const words = t("run.steps", { step, steps: run.steps });
  return h(
    "div.progress-line",
    {},
    progressBar(words, step, run.steps),
    h("span.numbers", {}, words),
    run.eta_seconds > 0 && h("span.muted", {}, left(run, duration(run.eta_seconds))),
  );
}

/** The time left, which is that of the stage alone where others follow. */
function left(run, time) {
  const isLast = run.stages?.at(-1)?.name === run.stage;
  return isLast ? t("run.left", { time }) : t("run.left_stage", { time });
}

function actions(head, view) {
  const { run, session } = view;
  const can = session.read_only ? {} : (run.can ?? {});
  view.stopAsked ||= run.stopping?.time ?? 0;
  const stopping = view.stopAsked && can.stop;
  const late = view.stopAsked && Date.now() / 1000 - view.stopAsked > KILL_AFTER_SECONDS;
  const has = (run.checkpoints ?? []).length > 0;
  return [
    can.resume &&
      button(t("run.resume"), () => act(view, "run/resume"), {
        kind: "primary",
        symbol: "play",
        "data-action": "resume",
      }),
    can.stop &&
      button(stopping ? t("run.stopping") : t("run.stop"), () => stop(view), {
        symbol: "circle-stop",
        disabled: Boolean(stopping),
        "data-action": "stop",
      }),
    can.kill &&
      (late || !can.stop || run.state === "silent") &&
      button(t("run.kill"), () => kill(view), { kind: "danger", symbol: "octagon-x", "data-action": "kill" }),
    has &&
      linkButton(t("run.evaluate"), viewLink("evaluation", view.id), {
        symbol: "clipboard-check",
        "data-action": "evaluate",
      }),
    has &&
      linkButton(t("run.chat"), viewLink("chat", view.id), {
        symbol: "message-square",
        kind: run.state === "done" ? "primary" : "",
        "data-action": "chat",
      }),
  ].filter(Boolean);
}

async function act(view, path, body = {}) {
  view.message = null;
  try {
    await post(path, { run: view.id, ...body });
    view.run = await get("run", { run: view.id }, view.signal);
  } catch (problem) {
    if (problem.name === "AbortError") return;
    view.message = problemNotice(problem);
  }
  view.drawHead();
}

async function stop(view) {
  view.stopAsked = Date.now() / 1000;
  await act(view, "run/stop");
  announce(t("run.stopping_text"));
  // Only now does a harder way appear.
  setTimeout(
    () => {
      if (!view.signal.aborted) view.drawHead();
    },
    KILL_AFTER_SECONDS * 1000 + 500,
  );
}

async function kill(view) {
  const lost = view.run.lost_on_kill;
  const text = lost
    ? t("run.kill_lost", { steps: lost.steps ?? 0, step: lost.checkpoint_step ?? 0, time: duration(lost.seconds) })
    : t("run.kill_all_lost");
  if (
    await confirmed(t("run.kill_title"), [h("p", {}, t("run.kill_text")), h("p", {}, h("strong", {}, text))], {
      yes: t("run.kill"),
      danger: true,
    })
  ) {
    await act(view, "run/kill", { confirmed: true });
  }
}

function trouble(run) {
  const ended = ["paused", "stopped", "crashed", "killed", "lost", "mistake"].includes(run.state);
  if (run.resume_problem && ended)
    return [
      errorOf(run),
      notice(
        "info",
        t("run.resume_not"),
        h("p.original", { lang: "en" }, String(run.resume_problem.message ?? run.resume_problem)),
      ),
    ];
  return errorOf(run);
}

function errorOf(run) {
  if (!run.error) return null;
  return notice(
    "bad",
    t(`advice.${run.error.advice ?? "see_log"}`),
    run.error.line && h("p.original", { lang: "en" }, run.error.line),
    (run.error.tail ?? []).length > 0 &&
      details(t("run.last_lines", { n: run.error.tail.length }), code(run.error.tail.join("\n"), t("run.tab.log"))),
  );
}

function overview(panel, view) {
  const now = h("div.grid-2", {});
  const curve = h("div", {});
  view.redrawOverview = () => {
    fill(now, stagesCard(view.run), aboutCard(view));
  };
  view.redrawCurves = () => mainCurve(curve, view);
  view.redrawOverview();
  mainCurve(curve, view);
  fill(panel, curve, now, commandCard(view.run));
}

function stagesCard(run) {
  const stages = run.stages ?? [];
  return h(
    "section.card",
    {},
    h("h2", {}, t("run.stages")),
    h("p.help", {}, t("run.stages_help")),
    h(
      "ol.stages",
      {},
      stages.map((stage) =>
        h(
          "li",
          { class: stage.over ? "over" : "" },
          h("strong", {}, stage.name),
          h(
            "span.numbers",
            {},
            stage.steps
              ? t("run.steps", { step: stage.over ? stage.steps : (stage.step ?? 0), steps: stage.steps })
              : t("run.stage_waits"),
          ),
          stage.over && h("span.muted", {}, t("run.stage_over")),
        ),
      ),
    ),
    stages.length === 0 && h("p.muted", {}, t("run.stages_none")),
  );
}

function aboutCard({ run }) {
  return h(
    "section.card",
    {},
    h("h2", {}, t("run.about")),
    facts([
      [t("run.loss"), number(run.loss)],
      [t("run.heldout"), number(run.heldout_loss)],
      run.exact_match !== null && run.exact_match !== undefined && [t("run.exact_match"), number(run.exact_match)],
      [t("run.started"), dateTime(run.started)],
      [t("run.updated"), dateTime(run.updated)],
      [t("run.host"), run.host ?? "–"],
      [t("run.device"), run.device ?? "–"],
      [t("run.family"), [run.family, run.trainable].filter(Boolean).join(" · ") || "–"],
      [t("run.recipe"), run.recipe ?? "–"],
      [t("run.folder"), run.path],
    ]),
  );
}

function commandCard(run) {
  if (!run.command_text) return null;
  return details(t("run.command"), h("p.help", {}, t("run.command_help")), code(run.command_text, t("run.command")));
}
