// The sixth step: everything once more, then save, start, copy or download.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { button, code, copyButton, details, download, notice, problemNotice } from "../parts/basic.js";
import { holders, namesOf } from "../parts/busy.js";
import { dropDraft, saveDraft } from "../parts/draft.js";
import { cards, field, textInput } from "../parts/form.js";
import { optionLabel } from "../parts/options.js";
import { runLink } from "../parts/run_words.js";
import { t } from "../texts.js";
import { complain, problemList } from "./new_problems.js";

/** Step 6. */
export async function reviewStep(place, view) {
  const { draft, session } = view;
  const here = draft.machine === "here";
  const { runs } = await get("runs", {}, view.signal);
  const busy = await holders(view.signal);
  await proposeName(view, runs);
  view.toldBusy = busy.length > 0; // a person who starts now shares the devices with these
  const problems = h("div", {}),
    command = h("div.stack", {}),
    differences = h("div.stack", {}),
    said = h("div.stack", { role: "status" }),
    page = h("div.stack", {});
  const name = field(
    { label: t("review.name"), help: t("review.name_help") },
    textInput(
      draft.name,
      (text) => {
        draft.name = text.trim();
        draft.named = true;
        view.changed();
      },
      { id: "run-name" },
    ),
  );
  view.onPreview = () => {
    if (!place.contains(problems)) return;
    fill(problems, problemList(view));
    fill(
      command,
      h("h3", {}, t("review.command")),
      h("p.help", {}, t("review.command_help")),
      code(view.preview.command, t("review.command")),
    );
    fill(differences, h("h3", {}, t("review.differences")), differenceTable(view.preview.differences));
  };
  const act = (action) => async () => {
    fill(said);
    if (view.preview?.problems.length) return complain(view, view.preview.problems);
    try {
      await action(said, view);
    } catch (problem) {
      if (problem.name !== "AbortError") fill(said, refused(problem, view, name));
    }
  };
  fill(
    place,
    problems,
    h(
      "section.card",
      {},
      name,
      here &&
        busy.length > 0 &&
        cards(
          t("review.when"),
          [
            {
              value: "now",
              title: t("review.now"),
              text: t("busy.shared", { names: namesOf(busy) }),
              symbol: "play",
            },
            { value: "queue", title: t("review.queue"), text: t("review.queue_text"), symbol: "list-ordered" },
          ],
          draft.when,
          (when) => {
            draft.when = when;
            view.changed();
          },
        ),
    ),
    h("section.card", {}, differences),
    h("section.card", {}, command),
    !here && page,
    h(
      "div.row",
      {},
      here &&
        !session.read_only &&
        button(t("review.start"), act(start), { kind: "primary", symbol: "play", id: "start" }),
      !session.read_only &&
        button(t("review.save"), act(save), { kind: here ? "" : "primary", symbol: "save", id: "save" }),
      copyButton(t("review.copy"), () => view.preview.command),
      button(t("review.download"), () => download(`${draft.name}.py`, view.preview.text, "text/x-python"), {
        symbol: "download",
      }),
    ),
    session.read_only && notice("info", t("review.read_only")),
    said,
  );
  if (view.preview) view.onPreview();
  if (!here) await launchPage(page, view);
}

const plain = (value) =>
  value === null || value === undefined ? "–" : typeof value === "string" ? value || '""' : JSON.stringify(value);

function differenceTable(all) {
  if (all.length === 0) return h("p.muted", {}, t("review.no_differences"));
  return h(
    "div.table-scroll",
    { tabindex: "0", role: "region", "aria-label": t("review.differences") },
    h(
      "table.settings",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          [t("settings.key"), t("review.before"), t("review.now_value")].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        all.map(({ key, default: before, value }) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, optionLabel(key), h("br"), h("code.option", {}, key)),
            h("td", {}, h("code", {}, plain(before))),
            h("td", {}, h("code", {}, plain(value))),
          ),
        ),
      ),
    ),
  );
}

const recipeOf = ({ draft }) => ({ base: draft.base, values: draft.values, name: draft.name });

/** A name that neither a run nor a recipe has, as long as nobody chose one. */
async function proposeName({ draft, signal, changed }, runs) {
  if (draft.named || draft.saved) return;
  const { recipes } = await get("recipes", {}, signal);
  const taken = new Set([...runs.map((run) => run.id), ...recipes.filter((one) => one.own).map((one) => one.name)]);
  let name = draft.name;
  for (let n = 2; taken.has(name); n += 1) name = `${draft.name}-${n}`;
  if (name !== draft.name) {
    draft.name = name;
    changed();
  }
}

/** Writes the recipe, over the one that this draft wrote before; returns its path. */
async function write(view) {
  const { draft } = view;
  const replace = draft.saved?.name === draft.name;
  const { path } = await post("recipe/save", { ...recipeOf(view), replace });
  draft.saved = { name: draft.name, path };
  saveDraft(draft);
  return path;
}

async function save(said, view) {
  const path = await write(view);
  fill(said, notice("good", t("review.saved"), h("p", {}, h("code", {}, path))));
}

async function start(said, view) {
  const { draft } = view;
  const recipe = await write(view);
  const share = draft.when === "now" && view.toldBusy;
  const devices = draft.devices.length > 0 ? draft.devices : null;
  const { run } = await post("runs/start", { recipe, name: draft.name, when: draft.when, share, devices });
  dropDraft();
  location.hash = draft.when === "queue" ? "#/queue" : runLink(run);
}

/** Why it was refused; with a free name, if the name was taken. */
function refused(problem, view, name) {
  const free = problem.facts?.free ?? problem.facts?.proposal;
  if (problem.code === "devices_busy") {
    const again = (when) => () => {
      view.draft.when = when;
      view.toldBusy = true;
      document.getElementById("start").click();
    };
    return h(
      "div.stack",
      {},
      problemNotice(problem),
      h(
        "div.row",
        {},
        button(t("review.queue_it"), again("queue"), { symbol: "list-ordered", kind: "primary" }),
        button(t("review.start_anyway"), again("now")),
      ),
    );
  }
  return h(
    "div.stack",
    {},
    problemNotice(problem),
    free &&
      button(
        t("review.take", { name: free }),
        () => {
          Object.assign(view.draft, { name: free, named: true });
          name.control.value = free;
          view.changed();
          name.control.focus();
        },
        { symbol: "pencil" },
      ),
  );
}

async function launchPage(place, view) {
  const { machine, machineSettings, slice, name } = view.draft;
  const settings = slice ? { ...machineSettings, SLICE: slice } : machineSettings;
  try {
    const answer = await post("launch/page", { name, machine, settings }, view.signal);
    fill(
      place,
      h(
        "section.card",
        {},
        h("h3", {}, t("review.page")),
        h("p.help", {}, t("review.page_help")),
        code(answer.text, t("review.page")),
        h(
          "div.row",
          {},
          copyButton(t("review.page_copy"), answer.text),
          button(t("review.page_download"), () => download(answer.name, answer.text, "text/x-shellscript"), {
            symbol: "download",
          }),
        ),
        answer.dry_run && details(t("review.dry_run"), code(answer.dry_run, t("review.dry_run"))),
      ),
    );
  } catch (problem) {
    if (problem.name !== "AbortError") fill(place, problemNotice(problem));
  }
}
