// Who has the devices of this machine.

import { get } from "../api.js";
import { t } from "../texts.js";
import { notice } from "./basic.js";

/** Runs and other work with devices: [{kind, id, name}]; `kinds` leaves the others out. */
export async function holders(signal, kinds = null) {
  const { running } = await get("queue", {}, signal);
  return running.filter(({ kind }) => kinds === null || kinds.includes(kind));
}

/** Their names as one text. */
export const namesOf = (found) => found.map(({ name }) => name).join(", ");

/** A warning for work that would share devices with them; null where these are free. */
export async function busyNotice(signal, kinds = null) {
  const found = await holders(signal, kinds);
  return found.length > 0 ? notice("warn", t("busy.shared", { names: namesOf(found) })) : null;
}
