import { expect } from "vitest";
import { until } from "../waits.ts";
import { ask, askPair, type Body } from "./client.ts";
import { blocksOf, descriptorsOf, type Resources, resourcesOf } from "./inspect.ts";
import { type Overrides, withPool } from "./worker_process.ts";

/** Tokens of a pool of which one request of the embedded model can need every block: as many as its context. */
export const POOL_TOKENS = 2048;
export const smallPool: Overrides = withPool(POOL_TOKENS);
/** All of its blocks are free when nothing runs. */
export const poolWithoutReuse: Overrides = withPool(POOL_TOKENS, { enableBlockReuse: false });
const OUTPUT_TOKENS = 16;
/** Needs every block of such a pool on the context side (its prompt) as on the generation side. */
export const EVERY_BLOCK: Body = {
  prompt: Array.from({ length: POOL_TOKENS - OUTPUT_TOKENS }, (_, index) => 5 + (index % 300)),
  max_tokens: OUTPUT_TOKENS,
  ignore_eos: true,
  temperature: 0,
};
/** Over 4 KiB: starts the thread that tokenises such prompts. */
const LONG_TEXT: Body = { prompt: "the ".repeat(1100), max_tokens: 1 };
/** What V8 may keep of the requests of one test; blocks and bodies that leak are more. */
const RSS_GROWTH_KIB = 48 * 1024;
/** Also on a busy machine, where a peer's end is noticed late; V8 gives memory back once its process has been idle for seconds. */
const SETTLE_MS = 30_000;

export interface Watched {
  readonly url: string;
  readonly child: { readonly pid?: number | undefined };
  readonly log: () => string;
}
/** A worker that takes part in one check only. */
export interface Fresh extends Watched {
  stop(): Promise<number | null>;
}

/**
 * "No leak" in the words of the issue: afterwards one request that needs every block of the pool is served on both sides, a fresh peer
 * pulls, fd and map counts equal the start, RssAnon is flat.
 */
export class LeakWatch {
  readonly #before = new Map<Watched, Resources>();

  private constructor() {}

  /** Counts what each worker holds, once everything is loaded that is loaded once: connections, pools, the code of every route. */
  static async begin(contexts: readonly Watched[], generations: readonly Watched[]): Promise<LeakWatch> {
    for (const context of contexts) {
      for (const generation of generations) await askPair({ context, generation }, "completion", EVERY_BLOCK);
    }
    const watch = new LeakWatch();
    for (const worker of [...contexts, ...generations]) {
      await ask(worker.url, "completion", EVERY_BLOCK);
      await ask(worker.url, "completion", LONG_TEXT);
      watch.#before.set(worker, resourcesOf(worker));
    }
    return watch;
  }

  /** Of the workers that still live. `fresh` fetches from each of them and they from it; then it ends. */
  async expectNone(survivors: readonly Watched[], fresh: Fresh): Promise<void> {
    for (const worker of survivors)
      await until("nothing is pinned, sent or received", () => isQuiet(worker), SETTLE_MS);
    const right = await ask(fresh.url, "completion", EVERY_BLOCK);
    expect(right.outputTokens).toBe(OUTPUT_TOKENS);
    for (const worker of survivors) {
      const replies = [
        await ask(worker.url, "completion", EVERY_BLOCK),
        await askPair({ context: worker, generation: fresh }, "completion", EVERY_BLOCK),
        await askPair({ context: fresh, generation: worker }, "completion", EVERY_BLOCK),
      ];
      for (const reply of replies) expect(reply).toMatchObject({ outputTokens: OUTPUT_TOKENS, text: right.text });
    }
    expect(await fresh.stop()).toBe(0);
    for (const worker of survivors) await this.#expectAsBefore(worker);
  }

  async #expectAsBefore(worker: Watched): Promise<void> {
    const before = this.#before.get(worker);
    if (before === undefined) throw new Error(`${worker.url} was not counted at the start`);
    let now = resourcesOf(worker);
    await until(
      "descriptors, mapped pools and memory are as at the start",
      async () => {
        now = resourcesOf(worker);
        const grown = now.rssAnonKib - before.rssAnonKib;
        return now.descriptors <= before.descriptors && now.pools <= before.pools && grown < RSS_GROWTH_KIB;
      },
      SETTLE_MS,
      () => `${JSON.stringify(before)} at the start, now ${JSON.stringify(now)}: ${openFilesOf(worker)}`,
    );
    expect(worker.log()).not.toMatch(/UNHANDLED|UnhandledPromiseRejection|internal defect/);
  }
}

async function isQuiet(worker: Watched): Promise<boolean> {
  const { pinned, quarantined, sends, receives } = await blocksOf(worker);
  return pinned === 0 && quarantined === 0 && sends.open === 0 && receives.open === 0;
}

/** Open files by what they are, for the message. */
function openFilesOf(worker: Watched): string {
  const counts = new Map<string, number>();
  for (const file of descriptorsOf(worker)) {
    const kind = file.replace(/:?\[\d+\]$/, "");
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  return [...counts].map(([kind, count]) => `${count} ${kind}`).join(", ");
}
