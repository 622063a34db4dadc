// One model of the chat: which, its serving process, and the conversation with it.

import { get, post, send } from "../api.js";
import { fill, h, pause } from "../dom.js";
import { announce, badge, button, code, details, empty, notice, problemNotice, progressBar } from "../parts/basic.js";
import { browse } from "../parts/browse.js";
import { checkpointFields } from "../parts/checkpoint.js";
import { tokenChips } from "../parts/samples.js";
import { number, t } from "../texts.js";
import { events, requestBody } from "./chat_request.js";

const SECONDS = 1; // between two looks at a process that starts

/** A column of the chat. */
export class Model {
  /** @param {Object} chosen {run, stage, step} that is loaded at once if it names a run */
  constructor(view, chosen) {
    Object.assign(this, {
      view,
      chosen: { run: null, stage: null, step: null, folder: null, ...chosen },
      chat: null,
      state: null,
      turns: [],
    });
    this.choice = h("div.stack", {});
    this.status = h("div.stack", {});
    this.talk = h("div.talk", { role: "log", "aria-label": t("chat.talk"), tabindex: "0" });
    this.element = h("section.card.model", { "aria-label": t("chat.model") }, this.choice, this.status, this.talk);
    this.drawChoice().catch((problem) => this.failed(problem));
    this.clear();
  }

  get isReady() {
    return this.state?.state === "ready";
  }

  /** The name in requests. */
  get name() {
    return this.state?.model ?? "jaxvlm";
  }

  /** The command that serves this model without the studio. */
  serveCommand() {
    const { run, folder, stage, step } = this.chosen;
    const path = this.view.runs.find((one) => one.id === run)?.path ?? run;
    const flags = folder
      ? `--from ${folder}`
      : `--run ${path ?? "RUN"}${stage ? ` --stage ${stage}` : ""}${step ? ` --step ${step}` : ""}`;
    return `python -m jaxvlm.serve ${flags}`;
  }

  async drawChoice() {
    const { view, chosen } = this;
    const fields = h("div.filters", {}),
      folder = h("p.muted", {});
    fill(
      this.choice,
      fields,
      folder,
      h(
        "div.row",
        {},
        !view.session.read_only && button(t("chat.load"), () => this.load(), { kind: "primary", symbol: "play" }),
        button(
          t("chat.folder"),
          () =>
            browse({ title: t("browse.weights"), kind: "folder" }, (path) => {
              Object.assign(chosen, { folder: path, run: null, stage: null, step: null });
              fill(folder, t("chat.folder_chosen"), " ", h("code", {}, path));
            }),
          { symbol: "folder-open" },
        ),
      ),
    );
    const named = Boolean(chosen.run);
    await checkpointFields(fields, chosen, view.runs, view.signal, () => {
      if (chosen.run) {
        chosen.folder = null;
        fill(folder);
      }
    });
    if (named && !view.session.read_only) await this.load();
  }

  failed(problem) {
    if (problem.name !== "AbortError") fill(this.status, problemNotice(problem));
  }

  /** Starts the serving process and waits until it answers. */
  async load() {
    const { run, folder, stage, step } = this.chosen;
    if (!run && !folder) return fill(this.status, notice("info", t("chat.choose_first")));
    await this.close();
    try {
      this.chat = (await this.loaded()) ?? (await this.started());
      await this.follow(this.chat);
    } catch (problem) {
      this.failed(problem);
    }
  }

  /** The ID of a process that serves this model already, such as one that was loaded before a reload. */
  async loaded() {
    const { run, folder, stage, step } = this.chosen;
    const { chats } = await get("chats", {}, this.view.signal);
    const same = ({ about }) =>
      folder ? about.folder === folder : about.run === run && about.stage === stage && about.step === step;
    const taken = this.view.models.map((model) => model.chat);
    return chats.find((chat) => same(chat) && !taken.includes(chat.id))?.id ?? null;
  }

  async started() {
    const { run, folder, stage, step } = this.chosen;
    return (await post("chat/start", folder ? { folder } : { run, stage, step })).chat;
  }

  async follow(chat) {
    for (;;) {
      this.state = await get("chat", { id: chat }, this.view.signal);
      if (chat !== this.chat) return;
      this.drawStatus();
      if (["ready", "failed", "stopped"].includes(this.state.state)) return;
      await pause(SECONDS * 1000, this.view.signal);
    }
  }

  drawStatus() {
    const { state, tokens, log_tail: log } = this.state;
    if (state !== this.announced) announce(t(`chat.state.${state}`, { tokens: tokens ?? 0 }));
    this.announced = state;
    fill(
      this.status,
      h(
        "div.row",
        {},
        badge(state === "failed" ? "failed" : state),
        h("span.muted", {}, t(`chat.state.${state}`, { tokens: tokens ?? 0 })),
        ["ready", "starting", "compiling"].includes(state) &&
          button(t("chat.unload"), () => this.close(), { kind: "small", symbol: "square" }),
      ),
      state === "compiling" && this.compiled(log ?? ""),
      state === "failed" && code((log ?? "").split("\n").slice(-20).join("\n"), t("task.log")),
    );
  }

  /** How many programs are compiled, from the last progress bar of the log. */
  compiled(log) {
    const [, done, all] = [...log.matchAll(/(\d+)\/(\d+) \[/g)].at(-1) ?? [];
    return progressBar(t("chat.state.compiling"), Number(done ?? 0), Number(all ?? 0));
  }

  /** Ends the serving process. */
  async close() {
    const chat = this.chat;
    [this.chat, this.state] = [null, null];
    fill(this.status);
    if (chat) await post("chat/stop", { id: chat }).catch((problem) => this.failed(problem));
  }

  /** Forgets the conversation. */
  clear() {
    this.turns = [];
    fill(this.talk, empty("message-square", t("chat.none"), t("chat.none_text")));
  }

  /** Sends a message and shows the answer as it comes. */
  async ask(text, images, signal) {
    if (this.turns.length === 0) fill(this.talk);
    this.turns.push({ role: "user", content: text, images });
    this.talk.append(bubble("user", text, images));
    const words = h("p.words", {}),
      note = h("p.muted.small", {});
    const answer = h("article.bubble.assistant", { "aria-label": t("role.assistant") }, words, note);
    this.talk.append(answer);
    const body = requestBody(this.turns, this.view.settings, this.name);
    const began = performance.now();
    let said = "",
      usage = null;
    try {
      const response = await send(
        "chat/complete",
        { id: this.chat, body: { ...body, stream: true, stream_options: { include_usage: true } } },
        signal,
      );
      for await (const event of events(response)) {
        if (event.error) throw new Error(event.error.message);
        said += event.choices?.[0]?.delta?.content ?? "";
        usage = event.usage ?? usage;
        words.textContent = said;
        this.talk.scrollTop = this.talk.scrollHeight;
      }
      note.textContent = this.inNumbers(usage, (performance.now() - began) / 1000);
    } catch (problem) {
      if (problem.name === "AbortError") note.textContent = t("chat.stopped");
      else
        answer.append(
          problem.code
            ? problemNotice(problem)
            : notice("bad", t("chat.failed"), h("p.original", { lang: "en" }, problem.message)),
        );
    }
    this.turns.push({ role: "assistant", content: said });
    answer.append(this.exactly(body));
  }

  inNumbers(usage, seconds) {
    if (!usage) return "";
    return t("chat.usage", {
      prompt: usage.prompt_tokens,
      answer: usage.completion_tokens,
      limit: this.state?.tokens ?? 0,
      seconds: number(seconds, 2),
    });
  }

  /** What the model got: each token, and the pixels after resizing. */
  exactly(body) {
    const place = h("div.stack", {}),
      chat = this.chat;
    const made = details(t("chat.exactly"), place);
    made.addEventListener("toggle", async () => {
      if (!made.open || place.hasChildNodes()) return;
      try {
        const { tokens = [], pixels = [], length, limit } = await post("chat/show", { id: chat, body });
        fill(
          place,
          h("p.muted", {}, t("chat.length", { length: length ?? tokens.length, limit: limit ?? 0 })),
          tokenChips(tokens),
          pixels.map((one, i) =>
            h(
              "figure.picture",
              {},
              h("img", { src: one.url, alt: t("data.picture", { n: i + 1 }) }),
              h("figcaption.small", {}, t("chat.pixels", { width: one.width, height: one.height, n: one.features })),
            ),
          ),
        );
      } catch (problem) {
        fill(place, problemNotice(problem));
      }
    });
    return made;
  }
}

const bubble = (role, text, images) =>
  h(
    "article.bubble",
    { class: role, "aria-label": t(`role.${role}`) },
    images.map((image, i) => h("img", { src: image.url, alt: t("data.picture", { n: i + 1 }) })),
    h("p.words", {}, text),
  );
