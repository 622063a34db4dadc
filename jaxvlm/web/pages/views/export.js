// Export: a checkpoint as files that other programs read.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { button, code, details, empty, heading, linkButton, notice, problemNotice } from "../parts/basic.js";
import { checkpointFields } from "../parts/checkpoint.js";
import { cards, field, textInput } from "../parts/form.js";
import { followTask } from "../parts/task.js";
import { t } from "../texts.js";

const KINDS = [
  ["hf", "package-open"],
  ["peft", "sparkles"],
  ["gguf", "cpu"],
];

export async function show(place, { id, query, session, signal }) {
  const { runs } = await get("runs", {}, signal);
  const head = heading(t("export.title"), t("export.lead"));
  if (runs.length === 0)
    return fill(
      place,
      head,
      empty(
        "package-open",
        t("home.none"),
        t("export.none_text"),
        linkButton(t("nav.new"), "#/new", { kind: "primary", symbol: "plus" }),
      ),
    );
  const chosen = { run: id || runs[0].id, stage: query.get("stage"), step: query.get("step") };
  const asked = { kind: "hf", to: "" };
  const kinds = h("div", {});
  const where = h("div.filters", {}),
    work = h("div.stack", {});
  const to = field(
    { label: t("export.to"), help: t("export.to_help") },
    textInput("", (text) => {
      asked.to = text.trim();
      to.typed = true;
    }),
  );
  const propose = () => {
    if (to.typed || !chosen.run) return;
    asked.to = `${chosen.run.replaceAll("/", "-")}-${chosen.stage ?? "model"}-${asked.kind}`;
    to.control.value = asked.to;
  };
  fill(
    place,
    head,
    h("section.card", {}, h("h2", {}, t("export.what")), where),
    h("section.card", {}, kinds),
    h(
      "section.card",
      {},
      to,
      session.read_only
        ? notice("info", t("review.read_only"))
        : h(
            "div.row",
            {},
            button(t("export.do"), () => begin(work, chosen, asked, to, signal), {
              kind: "primary",
              symbol: "package-open",
            }),
          ),
      work,
    ),
  );
  const drawKinds = async () => {
    propose();
    if (!chosen.run) return;
    const known = new Map((await get("export/kinds", { run: chosen.run }, signal)).map((one) => [one.kind, one]));
    if (!known.get(asked.kind)?.available) asked.kind = "hf";
    fill(
      kinds,
      cards(
        t("export.kind"),
        KINDS.map(([kind, symbol]) => ({
          value: kind,
          symbol,
          title: t(`export.${kind}`),
          text: t(`export.${kind}_text`),
          disabled: known.get(kind)?.available ? null : t("goal.not_available", { why: known.get(kind)?.why ?? "" }),
        })),
        asked.kind,
        (kind) => {
          asked.kind = kind;
          propose();
        },
      ),
    );
  };
  await checkpointFields(where, chosen, runs, signal, () =>
    drawKinds().catch((problem) => {
      if (problem.name !== "AbortError") fill(kinds, problemNotice(problem));
    }),
  );
}

async function begin(work, chosen, asked, to, signal) {
  to.setError(asked.to ? null : t("export.to_missing"));
  if (!asked.to) return to.control.focus();
  if (!chosen.step) return fill(work, notice("bad", t("checkpoint.none")));
  try {
    const { task } = await post("export", { ...chosen, ...asked });
    const ended = await followTask(work, task, t("export.doing"), signal);
    if (ended.state === "done")
      work.append(
        notice("good", t("export.done"), h("p", {}, h("code", {}, ended.about?.to ?? asked.to))),
        details(t("task.log"), code(ended.log_tail, t("task.log"))),
      );
  } catch (problem) {
    if (problem.name !== "AbortError") fill(work, problemNotice(problem));
  }
}
