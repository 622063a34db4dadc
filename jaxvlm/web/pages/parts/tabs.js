// Tabs by the pattern of WAI-ARIA: one stop for the Tab key, arrow keys between them.

import { fill, h, newId } from "../dom.js";

/**
 * @param {string} label name of the group
 * @param {Array} tabs {id, title, show(panel)}; `show` is called each time its tab is chosen
 * @param {string} first id of the tab at the start
 * @param {Function} onChange gets the id
 */
export function tabs(label, all, first, onChange = () => {}) {
  const base = newId("tabs");
  const panel = h("div.tab-panel", { role: "tabpanel", id: `${base}-panel`, tabindex: "0" });
  const buttons = all.map((tab) =>
    h(
      "button.tab",
      {
        type: "button",
        role: "tab",
        id: `${base}-${tab.id}`,
        "aria-controls": `${base}-panel`,
        on: { click: () => choose(tab.id), keydown: (event) => move(event, tab.id) },
      },
      tab.title,
    ),
  );

  function choose(id) {
    all.forEach((tab, i) => {
      const chosen = tab.id === id;
      buttons[i].setAttribute("aria-selected", String(chosen));
      buttons[i].tabIndex = chosen ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `${base}-${id}`);
    fill(panel);
    all.find((tab) => tab.id === id).show(panel);
    onChange(id);
  }

  function move(event, id) {
    const at = all.findIndex((tab) => tab.id === id);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = all[(to + all.length) % all.length];
    choose(next.id);
    document.getElementById(`${base}-${next.id}`).focus();
  }

  const made = h("div.tabs", {}, h("div.tab-list", { role: "tablist", "aria-label": label }, buttons), panel);
  made.choose = choose;
  choose(all.some((tab) => tab.id === first) ? first : all[0].id);
  return made;
}
