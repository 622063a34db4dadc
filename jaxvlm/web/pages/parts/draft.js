// The recipe that is being written: a base and values on top. It survives a reload in this tab; nothing else does.

const KEY = "jaxvlm-draft";
const EMPTY = {
  goal: null,
  base: null,
  stage: null,
  name: "",
  values: {},
  machine: "here",
  machineSettings: {},
  devices: [], // numbers of GPUs; none: all
  records: null, // for the hours of a plan
  price: null, // of a chip in an hour, for its cost
  step: "goal",
  when: "now",
};

/** The draft of this tab. */
export function loadDraft() {
  try {
    return { ...EMPTY, ...JSON.parse(sessionStorage.getItem(KEY) ?? "{}") };
  } catch {
    return { ...EMPTY };
  }
}

/** Keeps the draft. */
export const saveDraft = (draft) => sessionStorage.setItem(KEY, JSON.stringify(draft));

/** Forgets it. */
export const dropDraft = () => sessionStorage.removeItem(KEY);

/** Begins with a goal: its first size, and its own values. */
export function takeGoal(draft, goal) {
  Object.assign(draft, { goal: goal.id, base: goal.base, stage: goal.stage, values: { ...(goal.values ?? {}) } });
  if (!draft.named) draft.name = goal.id.replaceAll("_", "-");
}

/** Sets a value, or removes it where it equals that of the base. */
export function setValue(draft, option, value) {
  if (option && JSON.stringify(option.value) === JSON.stringify(value)) delete draft.values[option.key];
  else draft.values[option?.key ?? option] = value;
}
