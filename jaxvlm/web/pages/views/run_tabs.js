// The other tabs of a run: files, checkpoints, log, settings.

import { address, get } from "../api.js";
import { debounce, fill, h, pause } from "../dom.js";
import { MOVING, empty, facts, icon, linkButton, loading, problemNotice } from "../parts/basic.js";
import { checkbox, field, select, textInput } from "../parts/form.js";
import { viewLink } from "../parts/run_words.js";
import { bytes, dateTime, number, t } from "../texts.js";

const LOG_BYTES = 64 * 1024;
const LOG_SECONDS = 2; // between two looks while it is followed

/** Pictures that the run wrote, and the fate of its records. */
export function filesTab(panel, { id, run }) {
  const pictures = (run.files ?? []).filter((file) => /\.(png|jpe?g|webp)$/i.test(file.name));
  const rest = (run.files ?? []).filter((file) => !pictures.includes(file));
  fill(
    panel,
    pictures.length === 0 && empty("images", t("files.no_samples"), t("files.no_samples_text")),
    pictures.map((file) =>
      h(
        "figure.picture",
        {},
        h("img", { src: address("run/file", { run: id, name: file.name }), alt: fileWords(file), loading: "lazy" }),
        h("figcaption", {}, h("code", {}, file.name), " ", fileWords(file)),
      ),
    ),
    ledger(run.ledger),
    rest.length > 0 &&
      h(
        "section.card",
        {},
        h("h2", {}, t("files.others")),
        facts(rest.map((file) => [h("code", {}, file.name), `${bytes(file.bytes)} · ${fileWords(file)}`])),
      ),
  );
}

const fileWords = ({ what }) => t(`file.what.${what}`);

const FATES = ["used", "packed", "truncated", "rejected", "heldout", "unreached"];

function ledger(byStage) {
  const stages = Object.entries(byStage ?? {});
  if (stages.length === 0) return null;
  return h(
    "section.card",
    {},
    h("h2", {}, t("ledger.title")),
    h("p.help", {}, t("ledger.help")),
    h(
      "div.table-scroll",
      { tabindex: "0", role: "region", "aria-label": t("ledger.title") },
      h(
        "table.numbers",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, t("run.stage")),
            h("th", { scope: "col" }, t("ledger.read")),
            FATES.map((fate) => h("th", { scope: "col" }, t(`ledger.${fate}`))),
          ),
        ),
        h(
          "tbody",
          {},
          stages.map(([name, fates]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, name),
              h("td", {}, number(fates.read)),
              FATES.map((fate) =>
                h(
                  "td",
                  {
                    title: Object.entries(fates[fate]?.reasons ?? {})
                      .map(([why, n]) => `${why}: ${n}`)
                      .join("\n"),
                  },
                  number(fates[fate]?.total ?? 0),
                ),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

/** Checkpoints, newest first, and what can be done with each. */
export function checkpointsTab(panel, { id, run }) {
  const all = [...(run.checkpoints ?? [])].reverse();
  if (all.length === 0)
    return fill(
      panel,
      empty("save", t("checkpoints.none"), t(MOVING.has(run.state) ? "checkpoints.none_yet" : "checkpoints.none_text")),
    );
  fill(
    panel,
    h("p.help", {}, t("checkpoints.help")),
    h(
      "table.runs",
      {},
      h("caption.off-screen", {}, t("run.tab.checkpoints")),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["stage", "step", "size", "time"].map((name) => h("th", { scope: "col" }, t(`checkpoints.${name}`))),
          h("th", { scope: "col" }, t("checkpoints.do")),
        ),
      ),
      h(
        "tbody",
        {},
        all.map(({ stage, step, bytes: size, time }) =>
          h(
            "tr",
            {},
            h("td", { data: { label: t("checkpoints.stage") } }, stage),
            h("td.numbers", { data: { label: t("checkpoints.step") } }, number(step)),
            h("td.numbers", { data: { label: t("checkpoints.size") } }, bytes(size)),
            h("td", { data: { label: t("checkpoints.time") } }, dateTime(time)),
            h(
              "td",
              {},
              h(
                "div.row",
                {},
                ["evaluation", "chat", "export"].map((view) =>
                  linkButton(t(`checkpoints.to_${view}`), viewLink(view, id, { stage, step }), {
                    kind: "small",
                    "aria-label": t(`checkpoints.to_${view}_of`, { stage, step }),
                  }),
                ),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

/** The end of the log, a search in it, and following. */
export function logTab(panel, view) {
  const choice = { follow: MOVING.has(view.run.state), search: "", end: null };
  const text = h("pre.code.log", { tabindex: "0", role: "log", "aria-live": "off", "aria-label": t("run.tab.log") });
  const told = h("p.muted", { role: "status" }),
    found = h("div", {});
  const read = async () => {
    try {
      const answer = await get(
        "run/log",
        { run: view.id, end: choice.end, bytes: LOG_BYTES, search: choice.search },
        view.signal,
      );
      const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
      text.textContent = answer.text || t("log.empty");
      if (atEnd && choice.end === null) text.scrollTop = text.scrollHeight;
      told.textContent = answer.size
        ? t("log.part", { start: bytes(answer.start), end: bytes(answer.end), size: bytes(answer.size) })
        : "";
      fill(
        found,
        choice.search &&
          matches(answer.matches ?? [], (offset) => {
            choice.end = offset + LOG_BYTES / 2;
            choice.follow = false;
            follow.querySelector("input").checked = false;
            read();
          }),
      );
    } catch (problem) {
      if (problem.name !== "AbortError") fill(found, problemNotice(problem));
    }
  };
  const follow = checkbox(t("log.follow"), choice.follow, (on) => {
    choice.follow = on;
    if (on) {
      choice.end = null;
      read();
    }
  });
  fill(
    panel,
    h(
      "div.filters",
      {},
      field(
        { label: t("log.search") },
        textInput(
          "",
          debounce((words) => {
            choice.search = words;
            read();
          }, 300),
          { type: "search" },
        ),
      ),
      follow,
      told,
    ),
    found,
    text,
  );
  read();
  repeat(read, choice, panel, text, view.signal);
}

async function repeat(read, choice, panel, text, signal) {
  try {
    for (;;) {
      await pause(LOG_SECONDS * 1000, signal);
      if (!panel.contains(text)) return;
      if (choice.follow) await read();
    }
  } catch {
    /* the view was left */
  }
}

function matches(all, go) {
  if (all.length === 0) return h("p.muted", {}, t("log.no_match"));
  return h(
    "ul.matches",
    { "aria-label": t("log.matches", { n: all.length }) },
    all
      .slice(0, 50)
      .map(({ offset, line }) =>
        h("li", {}, h("button.link", { type: "button", lang: "en", on: { click: () => go(offset) } }, line)),
      ),
  );
}

/** Settings: what was changed from the defaults first, all by search, beside another run. */
export async function settingsTab(panel, view) {
  fill(panel, loading());
  const choice = { other: "", search: "", changed: true };
  const body = h("div", {});
  let all = [];
  try {
    const { runs } = await get("runs", {}, view.signal);
    const others = [
      ["", t("settings.no_other")],
      ...runs.filter((run) => run.id !== view.id).map((run) => [run.id, run.id]),
    ];
    const load = async () => {
      ({ settings: all } = await get("run/settings", { run: view.id, other: choice.other }, view.signal));
      draw();
    };
    const draw = () => settingsTable(body, all, choice);
    fill(
      panel,
      h(
        "div.filters",
        {},
        field(
          { label: t("settings.search") },
          textInput(
            "",
            (words) => {
              choice.search = words.toLowerCase();
              draw();
            },
            { type: "search" },
          ),
        ),
        field(
          { label: t("settings.other") },
          select(others, "", (other) => {
            choice.other = other;
            load().catch(failed);
          }),
        ),
        checkbox(t("settings.changed"), true, (on) => {
          choice.changed = on;
          draw();
        }),
      ),
      body,
    );
    await load();
  } catch (problem) {
    failed(problem);
  }
  function failed(problem) {
    if (problem.name !== "AbortError") fill(panel, problemNotice(problem));
  }
}

const plain = (value) =>
  value === undefined || value === null ? "–" : typeof value === "string" ? value || '""' : JSON.stringify(value);

function settingsTable(body, all, { other, search, changed }) {
  const differs = (one) => (other ? plain(one.value) !== plain(one.other) : one.base_differs);
  const kept = all.filter((one) => one.key.toLowerCase().includes(search) && (!changed || search || differs(one)));
  if (kept.length === 0)
    return fill(body, h("p.muted", {}, t(changed ? "settings.none_changed" : "settings.none_found")));
  fill(
    body,
    h("p.help", {}, t("settings.count", { n: kept.length, all: all.length })),
    h(
      "div.table-scroll",
      { tabindex: "0", role: "region", "aria-label": t("run.tab.settings") },
      h(
        "table.settings",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            [t("settings.key"), t("settings.value"), other || t("settings.default")].map((name) =>
              h("th", { scope: "col" }, name),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          kept.map((one) =>
            h(
              "tr",
              { class: differs(one) ? "differs" : "" },
              h("th", { scope: "row" }, h("code", {}, one.key)),
              h(
                "td",
                {},
                h("code", {}, plain(one.value)),
                differs(one) && h("span.badge.calm", {}, icon("pencil"), t("settings.differs")),
              ),
              h("td", {}, h("code", {}, plain(other ? one.other : one.default))),
            ),
          ),
        ),
      ),
    ),
  );
}
