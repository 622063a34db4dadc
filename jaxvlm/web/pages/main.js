// Starts the page: session, language, navigation, and the view that the address names.

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { heading, icon, loading, problemNotice } from "./parts/basic.js";
import { select } from "./parts/form.js";
import { LANGUAGES, chosenLanguage, firstLanguage, loadLanguage, t } from "./texts.js";

const VIEWS = {
  "": { file: "home", title: "nav.home", symbol: "house" },
  new: { file: "new_run", title: "nav.new", symbol: "plus" },
  chat: { file: "chat", title: "nav.chat", symbol: "message-square" },
  data: { file: "data", title: "nav.data", symbol: "database" },
  export: { file: "export", title: "nav.export", symbol: "package-open" },
  queue: { file: "queue", title: "nav.queue", symbol: "list-ordered" },
  doctor: { file: "doctor", title: "nav.doctor", symbol: "stethoscope" },
  run: { file: "run", title: "nav.run" },
  compare: { file: "compare", title: "nav.compare" },
  evaluation: { file: "evaluation", title: "nav.evaluation" },
  login: { file: "login", title: "nav.login" },
};

let session = { logged_in: false };
let leave = new AbortController();
let main;

/** The parts of `#/run/group/name?tab=log`: {view: "run", id: "group/name", query: URLSearchParams}. */
export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  return { view, id: rest.map(decodeURIComponent).join("/"), query: new URLSearchParams(query) };
}

function frame() {
  const links = Object.entries(VIEWS)
    .filter(([, view]) => view.symbol)
    .map(([name, view]) =>
      h("a", { href: `#/${name}`, data: { view: name } }, icon(view.symbol), h("span", {}, t(view.title))),
    );
  main = h("main", { id: "main" });
  const nav = h("nav.side", { "aria-label": t("nav.label"), id: "side" }, links, schemeChoice());
  const menu = h(
    "button.button.quiet.menu-button",
    {
      type: "button",
      "aria-expanded": "false",
      "aria-controls": "side",
      on: { click: () => menu.setAttribute("aria-expanded", String(document.body.classList.toggle("menu-open"))) },
    },
    icon("menu"),
    h("span", {}, t("nav.menu")),
  );
  fill(
    document.body,
    h("a.skip", { href: "#main", on: { click: skip } }, t("nav.skip")),
    h(
      "header.top",
      {},
      menu,
      h("a.brand", { href: "#/" }, icon("eye"), h("span", {}, "jaxvlm"), h("small", {}, "studio")),
      h(
        "div.row.end.grow",
        {},
        session.read_only && h("span.badge.calm", {}, icon("lock"), t("session.read_only")),
        languageChoice(),
      ),
    ),
    nav,
    main,
    h("div.off-screen", { id: "announcements", role: "status", "aria-live": "polite" }),
  );
}

function skip(event) {
  event.preventDefault(); // the fragment is the address of a view
  main.querySelector("h1")?.focus();
}

function languageChoice() {
  return h(
    "span.top-choice",
    {},
    icon("languages"),
    select(
      Object.entries(LANGUAGES),
      chosenLanguage(),
      async (name) => {
        localStorage.setItem("jaxvlm-language", name);
        await loadLanguage(name);
        frame();
        await show();
        document.getElementById("language").focus();
      },
      { id: "language", "aria-label": "Language / 语言" },
    ),
  );
}

function schemeChoice() {
  const kept = localStorage.getItem("jaxvlm-scheme") ?? "auto";
  return h(
    "span.top-choice",
    {},
    icon("sun-moon"),
    select(
      ["auto", "light", "dark"].map((one) => [one, t(`scheme.${one}`)]),
      kept,
      (scheme) => {
        localStorage.setItem("jaxvlm-scheme", scheme);
        document.documentElement.dataset.scheme = scheme;
        show(); // charts read their colours when they are drawn
      },
      { id: "scheme", "aria-label": t("scheme.label") },
    ),
  );
}

/** The module of a view. */
const load = (view) => import(`./views/${VIEWS[view].file}.js`);

async function show() {
  leave.abort(new DOMException("another view", "AbortError"));
  leave = new AbortController();
  const { signal } = leave;
  let route = parse(location.hash);
  if (!session.logged_in) route = { ...route, view: "login" };
  const view = VIEWS[route.view];
  document.body.classList.remove("menu-open");
  document.body.dataset.view = route.view || "home";
  for (const link of document.querySelectorAll("nav.side a")) {
    if (link.dataset.view === route.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${t(view?.title ?? "nav.missing")} · jaxvlm studio`;
  // A view fills a place of its own, so that one that was left cannot write over its successor.
  const place = h("div.view", { class: `view-${view?.file ?? "missing"}` }, loading());
  fill(main, place);
  if (!view) return fill(place, heading(t("nav.missing"), t("nav.missing_text")));
  try {
    const module = await load(route.view);
    await module.show(place, { ...route, session, signal, onLogin: begin });
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === undefined) console.error(error);
    fill(place, heading(t(view.title)), problemNotice(error));
  }
}

/** Loads the session, and the whole page for it. */
async function begin() {
  const { view } = parse(location.hash);
  if (view in VIEWS) load(view).catch(() => {}); // meanwhile; `show` tells of a failure
  session = await get("session");
  if (session.logged_in && location.hash.startsWith("#token=")) history.replaceState(null, "", "#/");
  await loadLanguage(firstLanguage(session.language));
  document.documentElement.dataset.scheme = localStorage.getItem("jaxvlm-scheme") ?? "auto";
  frame();
  await show();
}

addEventListener("hashchange", async () => {
  await show();
  scrollTo(0, 0);
  main.querySelector("h1")?.focus({ preventScroll: true });
});
addEventListener("logged-out", () => {
  if (session.logged_in) {
    session = { ...session, logged_in: false };
    show();
  }
});
begin().catch((error) => document.body.append(h("p.notice.bad", {}, `jaxvlm studio: ${error.message}`)));
