// The numbers of a run as they come: the points sent at the start, then lines of metrics.jsonl.

import { address, get } from "../api.js";
import { pause } from "../dom.js";

const POLL_SECONDS = 3;
const POLLS = 20; // until events are tried again
const POINTS = 2000; // of a curve, as the server chooses them

/** Curves of a run, and what follows. */
export class Curves {
  constructor({ cursor, stages, series }) {
    Object.assign(this, { cursor, stages, series });
    this.offsets = Object.fromEntries(stages.map((stage) => [stage.name, stage.offset]));
  }

  static async load(run, signal) {
    return new Curves(await get("run/curves", { run, points: POINTS }, signal));
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

  /** Whether the added points are too many to draw: the server then chooses again. */
  get isLong() {
    return Object.values(this.series).some(({ x }) => x.length > 2 * POINTS);
  }

  /** Whether these curves were read up to a cursor or beyond it, in the same file. */
  include(cursor) {
    const [[inode, offset], [own, end]] = [cursor, this.cursor].map((one) => one.split(":"));
    return inode === own && Number(offset) <= Number(end);
  }

  /** A series as chart.js takes it. */
  line(name, label) {
    const { x = [], value = [] } = this.series[name] ?? {};
    return { label, x, y: value };
  }
}

/** Curves that follow their run: news are added in order, and where they do not fit, the curves are read again. */
class Feed {
  constructor(run, curves, changed, signal) {
    Object.assign(this, { run, curves, changed, signal });
    this.before = Promise.resolve();
  }

  /** Takes {lines, reset} that end at a cursor. */
  take(news, cursor) {
    this.before = this.before.then(() => this.add(news, cursor)).catch(() => {}); // ends with the view
  }

  async add({ lines, reset }, cursor) {
    if (!reset && this.curves.include(cursor)) return; // they were read since
    if (reset || this.curves.isLong || !this.curves.append(lines)) this.curves = await this.load();
    this.changed(this.curves);
  }

  async load() {
    for (;;) {
      try {
        return await Curves.load(this.run, this.signal);
      } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        await pause(POLL_SECONDS * 1000, this.signal); // the studio is gone for now; the news will not come again
      }
    }
  }
}

/**
 * Watches a run until the signal is aborted: events of the server, or questions each few seconds where events do not
 * come through; from time to time events are tried again.
 * @param {Curves} curves of the run, so far
 * @param {Object} on state(run), curves(Curves), connected(boolean), gone(Problem): there is no such run any more
 */
export async function watchRun(run, curves, on, signal) {
  const watch = { run, on, signal, cursor: curves.cursor, feed: new Feed(run, curves, on.curves, signal) };
  try {
    for (;;) {
      await listen(watch);
      await poll(watch);
    }
  } catch (problem) {
    if (problem.status === 404) on.gone(problem);
    else if (problem.name !== "AbortError") throw problem;
  }
}

/** Takes the server's events, until they have failed twice. */
function listen(watch) {
  const { run, feed, on, signal } = watch;
  const source = new EventSource(address("run/events", { run, after: watch.cursor }));
  let failures = 0,
    came = false;
  source.addEventListener("open", () => {
    [failures, came] = [0, true];
    on.connected(true);
  });
  source.addEventListener("state", (event) => on.state(JSON.parse(event.data)));
  source.addEventListener("metrics", (event) => {
    watch.cursor = event.lastEventId || watch.cursor;
    feed.take(JSON.parse(event.data), watch.cursor);
  });
  return new Promise((done, fail) => {
    source.addEventListener("error", () => {
      failures += 1;
      if (came) on.connected(false); // where no event ever came, questions tell
      if (failures < 2 && source.readyState !== EventSource.CLOSED) return;
      source.close();
      done();
    });
    signal.addEventListener("abort", () => {
      source.close();
      fail(signal.reason);
    });
  });
}

/** Asks for news, and after a while returns, so that events are tried. */
async function poll(watch) {
  const { run, feed, on, signal } = watch;
  for (let count = 0; count < POLLS; count += 1) {
    await pause(POLL_SECONDS * 1000, signal);
    try {
      const answer = await get("run/metrics", { run, after: watch.cursor }, signal);
      watch.cursor = answer.cursor;
      if (answer.reset || answer.lines.length > 0) feed.take(answer, watch.cursor);
      on.state(await get("run", { run }, signal));
      on.connected(true);
    } catch (problem) {
      if (problem.name === "AbortError" || problem.status === 404) throw problem;
      on.connected(false);
    }
  }
}
