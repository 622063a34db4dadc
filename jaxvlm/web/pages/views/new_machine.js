// The fifth step: where the run trains, and whether it fits there.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { button, code, details, facts, notice, problemNotice } from "../parts/basic.js";
import { cards, checkbox, field, select, textInput } from "../parts/form.js";
import { followTask } from "../parts/task.js";
import { bytes, duration, hasText, number, t } from "../texts.js";

const SYMBOLS = { here: "monitor", tpu_vm: "cloud", gke: "server", slurm: "cpu" };
// Those without which nothing runs; the others are below "all settings".
const FIRST = [
  "PROJECT",
  "ZONE",
  "ACCELERATOR_TYPE",
  "TPU_TYPE",
  "TOPOLOGY",
  "CLUSTER",
  "BUCKET",
  "IMAGE",
  "WORKDIR",
  "NODES",
  "PARTITION",
];

/** Step 5. */
export async function machineStep(place, view) {
  const { draft } = view;
  const [machines, { gpus }] = await Promise.all([get("machines", {}, view.signal), get("queue", {}, view.signal)]);
  const form = h("div.stack", {}),
    plan = h("div.stack", {});
  const choose = (id) => {
    Object.assign(draft, { machine: id, machineSettings: {}, slice: "" });
    view.changed();
    fill(plan);
    drawForm(
      form,
      machines.find((one) => one.id === id),
      view,
      gpus,
    );
  };
  const about = (id, part) => (hasText(`machine.${id}.${part}`) ? t(`machine.${id}.${part}`) : id);
  fill(
    place,
    cards(
      t("machine.where"),
      machines.map(({ id, missing }) => ({
        value: id,
        title: about(id, "title"),
        text: about(id, "text"),
        symbol: SYMBOLS[id] ?? "server",
        disabled: missing ? t("goal.not_available", { why: missing }) : null,
      })),
      draft.machine,
      choose,
    ),
    form,
    h(
      "section.card",
      {},
      h("h3", {}, t("plan.title")),
      h("p.help", {}, t("plan.help")),
      h("div.form-grid", {}, planFields(view)),
      h(
        "div.row",
        {},
        button(t("plan.do"), () => makePlan(plan, view), { symbol: "list-checks" }),
      ),
      plan,
    ),
  );
  drawForm(form, machines.find((one) => one.id === draft.machine) ?? machines[0], view, gpus);
}

function drawForm(place, machine, view, gpus) {
  if (!machine || machine.id === "here") return fill(place, gpus.length > 1 && devices(gpus, view));
  const settings = view.draft.machineSettings;
  const one = (setting) =>
    field(
      {
        label: settingLabel(setting.name),
        option: setting.name,
        help: setting.help,
        hint: setting.default ? t("option.recipe_has", { value: setting.default }) : null,
      },
      textInput(settings[setting.name] ?? setting.default, (text) => {
        settings[setting.name] = text;
        view.changed();
      }),
    );
  const isFirst = (setting) => FIRST.includes(setting.name);
  const slices =
    (machine.slices ?? []).length > 0 &&
    field(
      { label: t("machine.slice"), help: t("machine.slice_help") },
      select(
        [["", t("machine.slice_none")], ...machine.slices.map((slice) => [slice, slice])],
        view.draft.slice ?? "",
        (slice) => {
          view.draft.slice = slice;
          view.changed();
        },
      ),
    );
  fill(
    place,
    h(
      "section.card",
      {},
      h("h3", {}, t("machine.settings")),
      h("p.help", {}, t("machine.settings_help")),
      slices,
      h("div.form-grid", { lang: "en" }, machine.settings.filter(isFirst).map(one)),
      details(
        t("machine.all_settings"),
        h("div.form-grid", { lang: "en" }, machine.settings.filter((setting) => !isFirst(setting)).map(one)),
      ),
    ),
  );
}

/** Which GPUs of this machine the run may use. */
function devices(gpus, { draft, changed }) {
  const one = (gpu) =>
    checkbox(t("machine.device", { gpu: String(gpu) }), draft.devices.includes(gpu), (on) => {
      draft.devices = gpus.filter((other) => (other === gpu ? on : draft.devices.includes(other)));
      changed();
    });
  return h(
    "section.card",
    {},
    h("h3", {}, t("machine.devices")),
    h("p.help", {}, t("machine.devices_help")),
    h("div.row", { id: "devices", role: "group", "aria-label": t("machine.devices") }, gpus.map(one)),
  );
}

const settingLabel = (name) => name.toLowerCase().replaceAll("_", " ");

/** What a plan needs for hours and cost: {records, price} of the draft. */
function planFields({ draft, changed }) {
  const one = (name, least) => {
    const made = field(
      { label: t(`plan.${name}`), help: t(`plan.${name}_help`) },
      textInput(
        draft[name] ?? "",
        (text) => {
          const given = Number(text);
          const isRight = Number.isFinite(given) && given >= least && (name === "price" || Number.isInteger(given));
          made.setError(text.trim() === "" || isRight ? null : t(`plan.${name}_wrong`));
          draft[name] = text.trim() !== "" && isRight ? given : null;
          changed();
        },
        { inputmode: "decimal", id: `plan-${name}` },
      ),
    );
    return made;
  };
  return [one("records", 1), one("price", 0)];
}

async function makePlan(place, view) {
  const { base, values, stage, machine, slice } = view.draft;
  if (machine !== "here" && !slice) return fill(place, notice("info", t("plan.choose_slice")));
  try {
    const given = Object.fromEntries(["records", "price"].map((name) => [name, view.draft[name] || undefined]));
    const where = machine === "here" ? "here" : slice;
    const { task } = await post("plan", { base, values, stage, machine: where, ...given });
    const ended = await followTask(place, task, t("plan.doing"), view.signal);
    if (ended.state === "done") fill(place, planResult(await get("plan/result", { task }, view.signal)));
  } catch (problem) {
    if (problem.name !== "AbortError") fill(place, problemNotice(problem));
  }
}

const fixWords = (fix) => (typeof fix === "string" ? fix : Object.values(fix).join(": "));

const sized = (memory) => (typeof memory === "number" ? bytes(memory) : memory);

function planResult(plan) {
  return h(
    "div.stack",
    {},
    plan.fits === false
      ? notice(
          "bad",
          t("plan.too_big"),
          plan.first_fix && h("p", {}, t("plan.first_fix"), " ", h("code", {}, fixWords(plan.first_fix))),
        )
      : plan.fits
        ? notice("good", t("plan.fits"))
        : notice("info", t("plan.unknown")),
    facts([
      plan.memory !== null &&
        plan.memory !== undefined && [
          t("plan.memory"),
          typeof plan.memory === "object"
            ? Object.entries(plan.memory)
                .map(([name, value]) => `${name}: ${sized(value)}`)
                .join(" · ")
            : sized(plan.memory),
        ],
      plan.hours !== null && plan.hours !== undefined && [t("plan.time"), duration(plan.hours * 3600)],
      plan.cost !== null &&
        plan.cost !== undefined && [
          t("plan.cost"),
          typeof plan.cost === "number" ? t("plan.dollars", { cost: number(plan.cost, 3) }) : String(plan.cost),
        ],
    ]),
    plan.report_text && details(t("plan.report"), code(plan.report_text, t("plan.report"))),
  );
}
