// Home: three ways to begin, and the table of runs, whoever started them.

import { get } from "../api.js";
import { fill, h, pause } from "../dom.js";
import { badge, button, details, disconnected, empty, heading, icon, linkButton, notice } from "../parts/basic.js";
import { spark } from "../parts/chart.js";
import { field, select, textInput } from "../parts/form.js";
import { losses, progress, runLink } from "../parts/run_words.js";
import { ago, dateTime, t } from "../texts.js";

const SECONDS = 5; // between two looks at the runs
const FIRST_ROWS = 40; // are drawn at once, the others when these are on the screen
const FRAME_MS = 100;

export async function show(place, { signal }) {
  const view = { filter: "", state: "all", sort: "updated", down: true, chosen: new Set(), runs: [], looked_in: "" };
  Object.assign(view, { head: h("thead", {}), body: h("tbody", {}), rows: new Map(), most: FIRST_ROWS });
  const table = h("div", {}),
    count = h("p.muted", { role: "status" }),
    compare = h("div.compare-bar", {}),
    broken = h("div", {}),
    connection = h("div", { role: "status" });
  const parts = { table, count, compare, broken, connection };
  const redraw = () => drawTable(parts, view, redraw);
  view.layout = () => {
    layout(place, view, parts, redraw);
    redraw();
  };
  Object.assign(view, await get("runs", {}, signal));
  view.layout();
  drawBroken(broken, view.broken);
  await pause(FRAME_MS, signal);
  view.most = Infinity;
  if (view.runs.length > FIRST_ROWS) redraw();
  for (;;) {
    await pause(SECONDS * 1000, signal);
    const before = view.runs.length === 0;
    try {
      Object.assign(view, await get("runs", {}, signal));
    } catch (problem) {
      if (problem.name === "AbortError") return;
      if (!connection.hasChildNodes()) fill(connection, disconnected());
      continue; // the studio was stopped, or is being started again: what is shown stays
    }
    fill(connection);
    drawBroken(broken, view.broken);
    if (before !== (view.runs.length === 0)) view.layout();
    else if (!table.contains(document.activeElement)) redraw();
  }
}

function drawBroken(place, broken) {
  const words = JSON.stringify(broken);
  if (place.dataset.words === words) return; // a person may have opened it
  place.dataset.words = words;
  const one = ({ name, problem }) => h("li", {}, h("code", {}, name), " ", h("span", { lang: "en" }, problem));
  fill(place, broken.length > 0 && details(t("home.broken", { n: broken.length }), h("ul.plain", {}, broken.map(one))));
}

function layout(place, view, parts, redraw) {
  const none = view.runs.length === 0;
  const states = ["all", "moving", "done", "trouble"].map((one) => [one, t(`home.filter.${one}`)]);
  fill(
    place,
    heading(none ? t("home.welcome") : t("home.title"), none ? t("home.lead") : null),
    parts.connection,
    ways(none),
    none
      ? empty("folder-open", t("home.none"), t("home.none_text", { folder: view.looked_in }))
      : h(
          "section",
          { "aria-label": t("home.runs") },
          h(
            "div.filters",
            {},
            field(
              { label: t("home.search") },
              textInput(
                view.filter,
                (text) => {
                  view.filter = text.toLowerCase();
                  redraw();
                },
                { type: "search" },
              ),
            ),
            field(
              { label: t("home.state") },
              select(states, view.state, (state) => {
                view.state = state;
                redraw();
              }),
            ),
            parts.count,
          ),
          parts.compare,
          parts.table,
          h("p.muted.small", {}, t("home.looked_in", { folder: view.looked_in })),
        ),
    parts.broken,
  );
}

function ways(big) {
  const way = (href, symbol, title, text, note) =>
    h(
      "a.way",
      { href },
      icon(symbol),
      h("strong", {}, title),
      h("span.muted", {}, text),
      note && h("span.note", {}, note),
    );
  return h(
    "nav.ways",
    { "aria-label": t("home.ways"), class: big ? "" : "slim" },
    way(
      "#/new?goal=quickstart",
      "graduation-cap",
      t("home.way.quickstart"),
      t("home.way.quickstart_text"),
      t("home.way.quickstart_note"),
    ),
    way("#/new", "images", t("home.way.own"), t("home.way.own_text"), t("home.way.own_note")),
    way("#/chat", "message-square", t("home.way.chat"), t("home.way.chat_text"), t("home.way.chat_note")),
  );
}

const TROUBLE = new Set(["mistake", "crashed", "killed", "silent", "lost"]);
const MOVING = new Set(["queued", "starting", "compiling", "training", "saving", "evaluating", "silent"]);
const FILTERS = {
  all: () => true,
  moving: (run) => MOVING.has(run.state),
  done: (run) => run.state === "done",
  trouble: (run) => TROUBLE.has(run.state),
};

const COLUMNS = [
  { id: "name", key: (run) => run.id },
  { id: "state", key: (run) => run.state },
  { id: "progress", key: (run) => (run.steps ? run.step / run.steps : 0) },
  { id: "loss", key: (run) => run.loss ?? Infinity },
  { id: "curve" },
  { id: "device", key: (run) => run.device ?? "" },
  { id: "updated", key: (run) => run.updated ?? 0 },
];

function drawTable({ table, count, compare }, view, redraw) {
  const kept = view.runs.filter(
    (run) => FILTERS[view.state](run) && `${run.id} ${run.family} ${run.trainable}`.toLowerCase().includes(view.filter),
  );
  const key = COLUMNS.find((one) => one.id === view.sort).key;
  kept.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (view.down ? -1 : 1));
  count.textContent = t("home.count", { n: kept.length, all: view.runs.length });
  for (const id of view.chosen) if (!view.runs.some((run) => run.id === id)) view.chosen.delete(id);
  fill(
    compare,
    view.chosen.size > 0 && [
      h("span", {}, t("home.chosen", { n: view.chosen.size })),
      view.chosen.size > 1
        ? linkButton(t("home.compare"), compareLink(view.chosen), { kind: "primary", symbol: "git-compare-arrows" })
        : h("span.muted", {}, t("home.choose_more")),
    ],
  );
  if (kept.length === 0) {
    return fill(
      table,
      notice(
        "info",
        t("home.no_match"),
        button(t("home.show_all"), () => {
          view.state = "all";
          view.filter = "";
          view.layout();
        }),
      ),
    );
  }
  const sortBy = (id) => {
    [view.sort, view.down] = [id, view.sort === id ? !view.down : id === "updated"];
    redraw();
    table.querySelector(`[data-sort="${id}"]`)?.focus();
  };
  drawRows(view, kept, (run) => row(run, view, redraw));
  fill(
    view.head,
    h(
      "tr",
      {},
      h("th", { scope: "col" }, h("span.off-screen", {}, t("home.choose"))),
      COLUMNS.map((column) => headCell(column, view, sortBy)),
    ),
  );
  if (!table.contains(view.body)) {
    fill(table, h("table.runs", {}, h("caption.off-screen", {}, t("home.runs")), view.head, view.body));
  }
}

/** Puts the runs' rows into the table; a row that would be the same as before stays where it is. */
function drawRows({ body, rows, most, chosen }, kept, make) {
  const shown = kept.slice(0, most).map((run) => {
    const key = JSON.stringify([run, chosen.has(run.id), ago(run.updated)]);
    if (rows.get(run.id)?.key !== key) rows.set(run.id, { key, element: make(run) });
    return rows.get(run.id).element;
  });
  const stay = new Set(shown);
  for (const element of [...body.children]) if (!stay.has(element)) element.remove();
  shown.forEach((element, i) => {
    if (body.children[i] !== element) body.insertBefore(element, body.children[i] ?? null);
  });
}

export const compareLink = (ids) => `#/compare?${new URLSearchParams([...ids].map((id) => ["run", id]))}`;

function headCell(column, view, sortBy) {
  const name = t(`home.column.${column.id}`);
  if (!column.key) return h("th", { scope: "col" }, name);
  const chosen = view.sort === column.id;
  return h(
    "th",
    { scope: "col", "aria-sort": chosen ? (view.down ? "descending" : "ascending") : null },
    h(
      "button.link.sort",
      { type: "button", data: { sort: column.id }, on: { click: () => sortBy(column.id) } },
      name,
      chosen && icon(view.down ? "arrow-down" : "arrow-up"),
    ),
  );
}

function row(run, view, redraw) {
  const choose = (event) => {
    if (event.target.checked) view.chosen.add(run.id);
    else view.chosen.delete(run.id);
    redraw();
    document.querySelector(`input[data-run="${CSS.escape(run.id)}"]`)?.focus();
  };
  return h(
    "tr",
    {},
    h(
      "td.choose",
      {},
      h("input", {
        type: "checkbox",
        checked: view.chosen.has(run.id),
        "aria-label": t("home.choose_run", { name: run.id }),
        data: { run: run.id },
        on: { change: choose },
      }),
    ),
    h(
      "td.name",
      {},
      h("a", { href: runLink(run.id) }, run.id),
      h("span.muted.small", {}, [run.family, run.trainable].filter(Boolean).join(" · ")),
    ),
    cell("state", badge(run.state), run.stage && h("span.muted.small", {}, run.stage)),
    cell("progress", progress(run)),
    cell("loss", losses(run)),
    h("td.spark-cell", {}, spark(run.spark ?? [])),
    cell("device", run.device ?? "–"),
    cell("updated", h("time", { title: dateTime(run.updated) }, ago(run.updated))),
  );
}

// The column's name stands beside the value where the table is shown as cards.
const cell = (id, ...children) => h("td", { data: { label: t(`home.column.${id}`) } }, children);
