// Doctor: what this machine has, and why something is not available.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { button, copyButton, facts, heading, icon, notice, problemNotice } from "../parts/basic.js";
import { followTask } from "../parts/task.js";
import { bytes, hasText, t } from "../texts.js";

export async function show(place, { session, signal }) {
  const { checks } = await get("doctor", {}, signal);
  const table = h("div", {}),
    probe = h("div.stack", {});
  const bad = checks.filter((one) => one.ok === false).length;
  draw(table, checks);
  const report = () =>
    checks
      .map((one) => `${one.ok === false ? "!" : " "} ${one.name}: ${one.value}${one.why ? ` (${one.why})` : ""}`)
      .join("\n");
  fill(
    place,
    heading(t("doctor.title"), t("doctor.lead"), copyButton(t("doctor.copy"), report)),
    h(
      "p.row",
      {},
      h(
        "span.badge",
        { class: bad ? "warn" : "good" },
        icon(bad ? "triangle-alert" : "circle-check"),
        t(bad ? "doctor.bad" : "doctor.good", { n: bad }),
      ),
    ),
    table,
    !session.read_only &&
      h(
        "section.card",
        {},
        h("h2", {}, t("doctor.devices")),
        h("p.help", {}, t("doctor.devices_help")),
        h(
          "div.row",
          {},
          button(t("doctor.probe"), () => begin(probe, signal), { symbol: "cpu" }),
        ),
        probe,
      ),
  );
}

function draw(table, checks) {
  fill(
    table,
    h(
      "ul.checks",
      {},
      checks.map((one) =>
        h(
          "li",
          { class: one.ok === false ? "bad" : "" },
          h(
            "span.check-mark",
            { class: one.ok === false ? "bad" : one.ok ? "good" : "calm" },
            icon(one.ok === false ? "circle-alert" : one.ok ? "circle-check" : "info"),
            h(
              "span.off-screen",
              {},
              t(one.ok === false ? "doctor.is_bad" : one.ok ? "doctor.is_good" : "doctor.is_info"),
            ),
          ),
          h("strong", {}, hasText(`doctor.check.${one.name}`) ? t(`doctor.check.${one.name}`) : one.name),
          h("code", {}, one.value || "–"),
          one.why && h("p.help", { lang: "en" }, one.why),
        ),
      ),
    ),
  );
}

async function begin(probe, signal) {
  try {
    const { task } = await post("doctor/probe", {});
    const ended = await followTask(probe, task, t("doctor.probing"), signal);
    if (ended.state === "done") probe.append(found(await get("doctor/probe", { task }, signal)));
  } catch (problem) {
    if (problem.name !== "AbortError") fill(probe, problemNotice(problem));
  }
}

function found({ backend, devices, error }) {
  if (error) return notice("bad", t("doctor.no_devices"), h("p.original", { lang: "en" }, error));
  return h(
    "div.stack",
    {},
    notice("good", t("doctor.found", { n: devices.length, backend })),
    facts(
      devices.map((device) => [
        String(device.id),
        [device.kind, device.memory_bytes && bytes(device.memory_bytes)].filter(Boolean).join(" · "),
      ]),
    ),
  );
}
