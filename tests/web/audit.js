// Faults of a page that a browser can find, as sentences; one expression, for `tests.browser.visit`: a control without a
// name, a field without a label, an id that is there twice or that is named and missing, text with too little contrast
// (WCAG 2.2: 4.5, for large text 3), a page wider than its window, a picture without words, more or less than one h1.
(() => {
  const found = [];
  const shown = (e) =>
    e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !e.closest(".off-screen, .skip");
  const say = (e, what) => found.push(`${what}: ${e.outerHTML.slice(0, 160)}`);
  const words = (ids) =>
    (ids ?? "")
      .split(/\s+/)
      .filter(Boolean)
      .map((id) => document.getElementById(id));
  const name = (e) =>
    e.getAttribute("aria-label") ||
    words(e.getAttribute("aria-labelledby"))
      .map((x) => x?.innerText)
      .join(" ") ||
    [...(e.labels ?? [])].map((x) => x.innerText).join(" ") ||
    (e.matches("input, select, textarea") ? "" : e.innerText || e.textContent) ||
    e.title;

  for (const e of document.querySelectorAll(
    'a, button, input, select, textarea, summary, progress, iframe, dialog, [role=tab], [tabindex="0"]',
  )) {
    if (e.checkVisibility() && !name(e)?.trim() && !e.matches("[role=tabpanel]")) say(e, "no name");
  }
  for (const e of document.querySelectorAll("input, select, textarea")) {
    if (e.checkVisibility() && !e.labels.length && !e.getAttribute("aria-label")) say(e, "no label");
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids.filter((one, i) => ids.indexOf(one) !== i))) found.push(`id twice: ${id}`);
  for (const e of document.querySelectorAll("[aria-describedby], [aria-labelledby], [aria-controls]")) {
    for (const part of ["aria-describedby", "aria-labelledby", "aria-controls"]) {
      if (words(e.getAttribute(part)).includes(null)) say(e, `${part} names what is missing`);
    }
  }
  for (const e of document.images) if (!e.hasAttribute("alt")) say(e, "no alt");
  if (document.querySelectorAll("h1").length !== 1) found.push(`${document.querySelectorAll("h1").length} h1`);
  if (!document.documentElement.lang) found.push("no lang");
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide > 0) {
    found.push(`${wide} px too wide`);
    for (const e of document.querySelectorAll("main *"))
      if (shown(e) && e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".table-scroll, pre")) {
        say(e, "too wide");
        break;
      }
  }

  // Colours are drawn on a canvas and read back, whatever their notation.
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (colour) => {
    if (!known.has(colour)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      known.set(colour, [...pen.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(colour);
  };
  const behind = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 255) break;
    }
    return layers
      .reverse()
      .reduce((below, [r, g, b, a]) => [r, g, b].map((x, i) => (x * a + below[i] * (255 - a)) / 255), [255, 255, 255]);
  };
  const light = (rgb) =>
    rgb
      .slice(0, 3)
      .map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
      .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const e = text.parentElement;
    if (!text.data.trim() || seen.has(e) || !shown(e) || e.closest(":disabled, option")) continue;
    seen.add(e);
    const style = getComputedStyle(e),
      size = parseFloat(style.fontSize);
    const [a, b] = [light(rgba(style.color)), light(behind(e))].sort((x, y) => y - x);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if ((a + 0.05) / (b + 0.05) < least) say(e, `contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return found;
})();
