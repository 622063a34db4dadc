// Chat with a checkpoint, or with two side by side.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { button, code, details, heading, iconButton, notice } from "../parts/basic.js";
import { busyNotice } from "../parts/busy.js";
import { checkbox, field, textArea, textInput } from "../parts/form.js";
import { t } from "../texts.js";
import { Model } from "./chat_model.js";
import { asCurl, asPython, requestBody } from "./chat_request.js";

export async function show(place, { id, query, session, signal }) {
  const [{ runs }, busy] = await Promise.all([get("runs", {}, signal), busyNotice(signal, ["run", "evaluate"])]);
  const withCheckpoints = runs.filter((run) => run.state !== "queued");
  const view = {
    runs: withCheckpoints,
    session,
    signal,
    images: [],
    settings: { temperature: 0, top_p: 1, max_tokens: 256, seed: 0, system: "" },
    two: false,
    busy: null,
  };
  const models = h("div.models", {}),
    composer = h("div.card.composer", {});
  view.models = [new Model(view, { run: id || null, stage: query.get("stage"), step: query.get("step") })];
  view.drawModels = () =>
    fill(
      models,
      view.models.map((model) => model.element),
    );
  const second = checkbox(
    t("chat.two"),
    false,
    (on) => {
      if (on) view.models.push(new Model(view, {}));
      else view.models.splice(1).forEach((model) => model.close());
      view.drawModels();
    },
    t("chat.two_help"),
  );
  fill(
    place,
    heading(
      t("chat.title"),
      t("chat.lead"),
      button(
        t("chat.clear"),
        () => {
          view.models.forEach((model) => model.clear());
        },
        { symbol: "rotate-ccw" },
      ),
    ),
    session.read_only ? notice("info", t("chat.read_only")) : busy,
    second,
    models,
    composer,
  );
  drawComposer(composer, view);
  view.drawModels();
}

function drawComposer(place, view) {
  const thumbs = h("ul.thumbs", { "aria-label": t("chat.pictures") }),
    said = h("div", { role: "status" });
  const words = textArea("", () => {}, { id: "message", rows: "3", placeholder: t("chat.placeholder") });
  const file = h("input.off-screen", {
    type: "file",
    accept: "image/*",
    multiple: true,
    id: "pictures",
    tabindex: "-1",
    "aria-label": t("chat.add_pictures"),
    on: {
      change: () => {
        take([...file.files]);
        file.value = "";
      },
    },
  });
  const take = async (files) => {
    for (const one of files)
      if (one.type.startsWith("image/")) view.images.push({ name: one.name, url: await asDataUrl(one) });
    drawThumbs();
  };
  const drawThumbs = () =>
    fill(
      thumbs,
      view.images.map((image, i) =>
        h(
          "li",
          {},
          h("img", { src: image.url, alt: t("data.picture", { n: i + 1 }) }),
          h("span.small", {}, t("data.picture", { n: i + 1 })),
          iconButton(t("chat.remove_picture", { n: i + 1 }), "x", () => {
            view.images.splice(i, 1);
            drawThumbs();
            words.focus();
          }),
        ),
      ),
    );
  const submit = async () => {
    const text = words.value.trim();
    const ready = view.models.filter((model) => model.isReady);
    if (!text && view.images.length === 0) return words.focus();
    if (ready.length === 0) return fill(said, notice("warn", t("chat.not_ready")));
    fill(said);
    const images = view.images.splice(0);
    words.value = "";
    drawThumbs();
    view.busy = new AbortController();
    drawButtons();
    await Promise.all(ready.map((model) => model.ask(text, images, view.busy.signal)));
    view.busy = null;
    drawButtons();
    words.focus();
  };
  const buttons = h("div.row", {});
  const drawButtons = () =>
    fill(
      buttons,
      view.busy
        ? button(t("chat.stop"), () => view.busy.abort(), { symbol: "circle-stop", kind: "primary" })
        : button(t("chat.send"), submit, { symbol: "send", kind: "primary", id: "send" }),
    );
  words.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !view.busy) {
      event.preventDefault();
      submit();
    }
  });
  words.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      take([...event.clipboardData.files]);
    }
  });
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  fill(
    place,
    field({ label: t("chat.message"), hint: t("chat.message_hint") }, words),
    thumbs,
    file,
    h(
      "div.row.between",
      {},
      button(t("chat.add_pictures"), () => file.click(), { symbol: "image", id: "add-pictures" }),
      buttons,
    ),
    said,
    details(t("chat.settings"), settings(view)),
    details(t("chat.code"), codeOf(view)),
  );
  drawButtons();
}

const asDataUrl = (file) =>
  new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });

function settings({ settings: values }) {
  const one = (name, low, high, whole = false) => {
    const made = field(
      { label: t(`chat.${name}`), help: t(`chat.${name}_help`), option: name },
      textInput(
        String(values[name]),
        (text) => {
          const value = Number(text);
          const wrong = text.trim() === "" || !(value >= low && value <= high) || (whole && !Number.isInteger(value));
          made.setError(wrong ? t("option.between", { low, high }) : null);
          if (!wrong) values[name] = value;
        },
        { inputmode: "decimal" },
      ),
    );
    return made;
  };
  return [
    h(
      "div.form-grid",
      {},
      one("temperature", 0, 2),
      one("top_p", 0.01, 1),
      one("max_tokens", 1, 32768, true),
      one("seed", 0, 2 ** 31 - 1, true),
    ),
    field(
      { label: t("chat.system"), help: t("chat.system_help"), option: "system" },
      textArea(values.system, (text) => {
        values.system = text;
      }),
    ),
  ];
}

/** The same question from a program, made when it is asked for. */
function codeOf(view) {
  const shown = h("div.stack", {});
  const draw = () => {
    const text = document.getElementById("message").value || t("chat.example");
    const body = requestBody([{ role: "user", content: text, images: view.images }], view.settings, "jaxvlm");
    const model = view.models[0];
    fill(
      shown,
      h("p.help", {}, t("chat.code_help")),
      code(model.serveCommand(), t("chat.serve_command")),
      code(asCurl(body), "curl"),
      code(asPython(body), "Python"),
    );
  };
  const made = h("div.stack", {}, h("div.row", {}, button(t("chat.code_do"), draw, { symbol: "terminal" })), shown);
  return made;
}
