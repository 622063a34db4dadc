// A window in which a file or folder of the studio's machine is chosen, below the folders that it was started with.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { bytes, t } from "../texts.js";
import { button, icon, loading, problemNotice } from "./basic.js";
import { openDialog } from "./dialog.js";

/** Opens the window; `onPick` gets the path. `kind`: "file", "folder", or "any". */
export function browse({ kind = "any", title }, onPick) {
  const body = h("div.stack", {});
  let here = null;
  const pickHere = button(t("browse.this_folder"), () => pick(here), { kind: "primary" });
  const dialog = openDialog(title, body, kind === "file" ? [] : [pickHere]);
  const pick = (path) => {
    dialog.close();
    onPick(path);
  };

  async function open(path) {
    fill(body, loading());
    try {
      const answer = await get("browse", { path });
      here = answer.path || null;
      pickHere.disabled = !here;
      draw(answer);
    } catch (problem) {
      fill(
        body,
        problemNotice(problem),
        button(t("browse.start"), () => open(null)),
      );
    }
  }

  function draw({ path, parent, folders, files }) {
    const entry = (symbol, name, note, action) =>
      h(
        "li",
        {},
        h(
          "button.entry",
          { type: "button", on: { click: action } },
          icon(symbol),
          h("span", {}, name),
          note && h("span.muted.small", {}, note),
        ),
      );
    fill(
      body,
      h("p.help", {}, path ? h("code", {}, path) : t("browse.roots")),
      h(
        "ul.entries",
        {},
        path && entry("arrow-up", t("browse.up"), null, () => open(parent)),
        folders.map((folder) => entry("folder", folder.name, folder.format, () => open(folder.path))),
        kind !== "folder" &&
          files.map((file) =>
            entry("file", file.name, [file.format, bytes(file.bytes)].filter(Boolean).join(" · "), () =>
              pick(file.path),
            ),
          ),
      ),
      folders.length + files.length === 0 && h("p.muted", {}, t("browse.empty", { path: path ?? "" })),
    );
    body.querySelector("button")?.focus();
  }
  open(null);
}
