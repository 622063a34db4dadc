// The page's texts in the chosen language, and numbers and times as that language writes them.

export const LANGUAGES = { en: "English", zh: "简体中文" };

let language = "en";
let texts = {};
let options = {};

/** The chosen language: "en" or "zh". */
export const chosenLanguage = () => language;

/** Loads the texts of a language, and names it in the document. */
export async function loadLanguage(name) {
  const [page, forms] = await Promise.all([`${name}.json`, `options_${name}.json`].map(read));
  [language, texts, options] = [name, page, forms];
  document.documentElement.lang = { en: "en", zh: "zh-CN" }[name];
}

async function read(file) {
  const response = await fetch(new URL(`texts/${file}`, import.meta.url));
  if (!response.ok) throw new Error(`${file}: ${response.status}`);
  return response.json();
}

/** The language that this browser chose before, that the server was given, or that the browser asks for. */
export function firstLanguage(server) {
  const kept = localStorage.getItem("jaxvlm-language");
  if (kept in LANGUAGES) return kept;
  if (server in LANGUAGES) return server;
  const wanted = navigator.languages.map((one) => one.slice(0, 2)).find((one) => one in LANGUAGES);
  return wanted ?? "en";
}

/** Whether there is a text. */
export const hasText = (key) => key in texts;

/**
 * A text, with its {places} filled. Numbers are written as the language does; {n} also chooses the plural form where
 * the text has several.
 */
export function t(key, values = {}) {
  let text = texts[key];
  if (text === undefined) {
    console.warn(`no text: ${key}`);
    return key;
  }
  if (typeof text === "object") text = text[format("PluralRules").select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) =>
    typeof values[name] === "number" ? number(values[name]) : String(values[name]),
  );
}

/** {label, help, why} of an option; its stage's name is of no matter. */
export function optionText(key) {
  return options[key.replace(/^stage\.[^.]+\./, "stage.*.")] ?? {};
}

const made = new Map();

/** A formatter of Intl, such as "NumberFormat", in the chosen language; to make one takes longer than to use it. */
function format(kind, options = {}) {
  const key = JSON.stringify([kind, language, options]);
  if (!made.has(key)) made.set(key, new Intl[kind]({ en: "en", zh: "zh-CN" }[language], options));
  return made.get(key);
}

/** A number with at most `digits` significant digits. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const small = value !== 0 && Math.abs(value) < 1e-3;
  if (small) return value.toExponential(Math.min(2, digits - 1));
  return format("NumberFormat", Number.isInteger(value) ? {} : { maximumSignificantDigits: digits }).format(value);
}

/** A share as percent. */
export const percent = (value, digits = 1) =>
  value === null || value === undefined
    ? "–"
    : format("NumberFormat", { style: "percent", maximumFractionDigits: digits }).format(value);

/** A size in bytes. */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let n = value,
    unit = 0;
  while (n >= 1024 && unit < units.length - 1) [n, unit] = [n / 1024, unit + 1];
  return `${number(n, 3)} ${units[unit]}`;
}

/** A length of time, from seconds, in its two largest units. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return t("time.seconds", { s });
  if (s < 3600) return t("time.minutes", { m: Math.round(s / 60) });
  if (s < 86400) return t("time.hours", { h: Math.floor(s / 3600), m: Math.floor((s % 3600) / 60) });
  return t("time.days", { d: Math.floor(s / 86400), h: Math.floor((s % 86400) / 3600) });
}

/** How long ago a time was; `time` in seconds since 1970. */
export function ago(time, now = Date.now() / 1000) {
  if (!time) return "–";
  const s = Math.max(0, now - time);
  const [unit, size] = s < 60 ? ["second", 1] : s < 3600 ? ["minute", 60] : s < 86400 ? ["hour", 3600] : ["day", 86400];
  return format("RelativeTimeFormat", { numeric: "auto" }).format(-Math.floor(s / size), unit);
}

/** A date with its time of day; `time` in seconds since 1970. */
export const dateTime = (time) =>
  time ? format("DateTimeFormat", { dateStyle: "medium", timeStyle: "short" }).format(new Date(time * 1000)) : "–";
