import { expect } from "vitest";
import { expectAsBefore, type Resources, resourcesOf } from "../held_resources.ts";
import { until } from "../waits.ts";
import { ask, askPair, type Body } from "./client.ts";
import { blocksOf } from "./inspect.ts";
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
    await expectAsBefore(worker.url, worker, before);
    expect(worker.log()).not.toMatch(/UNHANDLED|UnhandledPromiseRejection|internal defect/);
  }
}

async function isQuiet(worker: Watched): Promise<boolean> {
  const { pinned, quarantined, sends, receives } = await blocksOf(worker);
  return pinned === 0 && quarantined === 0 && sends.open === 0 && receives.open === 0;
}
