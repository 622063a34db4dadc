// The numbers of a run as they come: the points sent at the start, then lines of metrics.jsonl.

import { address, get } from "../api.js";
import { pause } from "../dom.js";

const POLL_SECONDS = 3;

/** Curves of a run, and what follows. */
export class Curves {
  constructor({ cursor, stages, series }) {
    Object.assign(this, { cursor, stages, series });
    this.offsets = Object.fromEntries(stages.map((stage) => [stage.name, stage.offset]));
  }

  static async load(run, signal) {
    return new Curves(await get("run/curves", { run, points: 2000 }, signal));
  }

  /** Adds lines of metrics.jsonl; false if one belongs to an unknown stage, or goes back: then load again. */
  append(lines) {
    for (const line of lines) {
      const offset = this.offsets[line.stage];
      if (offset === undefined) return false;
      for (const [name, value] of Object.entries(line)) {
        if (name === "stage" || name === "step" || typeof value !== "number") continue;
        const series = (this.series[name] ??= { step: [], value: [], stage: [], x: [] });
        const x = line.step + offset;
        if (series.x.length && x <= series.x.at(-1)) {
          if (x === series.x.at(-1)) continue;
          return false;
        }
        series.step.push(line.step);
        series.value.push(value);
        series.x.push(x);
      }
    }
    return true;
  }

  /** A series as chart.js takes it. */
  line(name, label) {
    const { x = [], value = [] } = this.series[name] ?? {};
    return { label, x, y: value };
  }
}

/**
 * Watches a run until the signal is aborted: events of the server, or questions each few seconds where events do not
 * come through.
 * @param {Object} on state(run), metrics({lines, reset}), connected(boolean)
 */
export function watchRun(run, cursor, on, signal) {
  let failures = 0,
    last = cursor;
  const source = new EventSource(address("run/events", { run, after: cursor }));
  source.addEventListener("open", () => {
    failures = 0;
    on.connected(true);
  });
  source.addEventListener("state", (event) => on.state(JSON.parse(event.data)));
  source.addEventListener("metrics", (event) => {
    last = event.lastEventId || last;
    on.metrics(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    failures += 1;
    on.connected(false);
    if (failures < 2 && source.readyState !== EventSource.CLOSED) return;
    source.close();
    poll(run, last, on, signal).catch(() => {}); // ends with the view
  });
  signal.addEventListener("abort", () => source.close());
}

async function poll(run, cursor, on, signal) {
  let after = cursor;
  while (!signal.aborted) {
    await pause(POLL_SECONDS * 1000, signal);
    try {
      const answer = await get("run/metrics", { run, after }, signal);
      after = answer.cursor;
      on.metrics(answer);
      on.state(await get("run", { run }, signal));
      on.connected(true);
    } catch (error) {
      if (error.name === "AbortError") return;
      on.connected(false);
    }
  }
}
