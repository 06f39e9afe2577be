import { afterEach, expect, it } from "vitest";
import { type Routed, route } from "./routed.ts";
import {
  beginStream,
  contextReply,
  events,
  generationReply,
  type Received,
  ScriptedWorker,
  sendJson,
} from "./scripted_worker.ts";

let routed: Routed | undefined;
afterEach(async () => {
  await routed?.[Symbol.asyncDispose]();
  routed = undefined;
});

/** mulberry32: small, seeded, good enough to spread events. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** KV that context workers hold, by id; whoever ends it takes it out. */
class Ledger {
  readonly held = new Map<string, string>();
  readonly #random: () => number;

  constructor(random: () => number) {
    this.#random = random;
  }

  contextWorker(): ScriptedWorker {
    const worker = new ScriptedWorker();
    worker.context = async (received) => {
      await pause(this.#random() * 10);
      // As a worker does: a closed connection ends the request before it holds anything.
      if (received.response.destroyed) return;
      if (this.#random() < 0.1) {
        received.response.socket?.resetAndDestroy();
        return;
      }
      const id = String(received.body.disaggregated_params?.disagg_request_id);
      this.held.set(id, String(received.headers["x-request-id"]));
      sendJson(received, contextReply({ id }));
    };
    return worker;
  }

  generationWorker(): ScriptedWorker {
    const worker = new ScriptedWorker();
    worker.generation = async (received) => {
      await pause(this.#random() * 5);
      const id = /"ctx_request_id":(\d+)/.exec(received.text)?.[1] ?? "";
      if (!this.held.has(id)) {
        sendJson(received, '{"error":{"message":"no such offer","code":"no_offer"}}', 404);
        return;
      }
      if (this.#random() < 0.1) {
        received.response.socket?.resetAndDestroy();
        return;
      }
      await this.#answer(received, id);
    };
    return worker;
  }

  /** The KV counts as fetched once the whole answer is out; before that a client that leaves has to have it given back. */
  async #answer(received: Received, id: string): Promise<void> {
    if (received.body.stream !== true) {
      sendJson(received, generationReply());
      this.held.delete(id);
      return;
    }
    const response = beginStream(received);
    for (const event of events) {
      if (response.destroyed) return;
      response.write(event);
      await pause(this.#random() * 3);
    }
    if (response.destroyed) return;
    response.end();
    this.held.delete(id);
  }

  /** What releases and aborts have ended. */
  settle(workers: readonly ScriptedWorker[]): void {
    for (const text of workers.flatMap(({ released }) => released)) {
      this.held.delete(/"ctx_request_id":(\d+)/.exec(text)?.[1] ?? "");
    }
    const aborted = new Set(workers.flatMap(({ aborted: ids }) => ids));
    for (const [id, requestId] of this.held) if (aborted.has(requestId)) this.held.delete(id);
  }
}

it.each([1, 2, 3])(
  "200 requests, 16 at once, a third cancelled at random moments, workers dying now and then: every answer is right, no KV is forgotten (seed %i)",
  async (seed) => {
    const random = randomOf(seed);
    const ledger = new Ledger(random);
    const context = await Promise.all([1, 2].map(() => ledger.contextWorker().listen()));
    const generation = await Promise.all([1, 2].map(() => ledger.generationWorker().listen()));
    routed = await route({ context, generation, settings: { maxRetries: 2 } });
    const { complete, router } = routed;
    const warnings: string[] = [];
    const onWarning = (warning: Error): void => void warnings.push(String(warning));
    process.on("warning", onWarning);
    const outcomes = { right: 0, cancelled: 0, failed: 0 };

    const one = async (): Promise<void> => {
      const stream = random() < 0.5;
      const leave = new AbortController();
      const timer = random() < 0.33 ? setTimeout(() => leave.abort(), random() * 25) : undefined;
      try {
        const response = await complete({ stream }, { signal: leave.signal });
        const text = await response.text();
        if (response.status !== 200) {
          expect([502, 503]).toContain(response.status);
          outcomes.failed += 1;
        } else if (text.includes('data: {"error"')) {
          outcomes.failed += 1;
        } else {
          expect(text).toBe(stream ? events.join("") : generationReply());
          outcomes.right += 1;
        }
      } catch (error) {
        expect(leave.signal.aborted, String(error)).toBe(true);
        outcomes.cancelled += 1;
      } finally {
        clearTimeout(timer);
      }
    };
    let left = 200;
    await Promise.all(
      Array.from({ length: 16 }, async () => {
        while (left-- > 0) await one();
      }),
    );
    await router.drained();
    await router.close({ drainMs: 0 });
    process.off("warning", onWarning);
    ledger.settle(context);
    expect(warnings).toEqual([]);
    expect([...ledger.held.keys()]).toEqual([]);
    expect(outcomes.right).toBeGreaterThan(100);
    expect(outcomes.cancelled).toBeGreaterThan(10);
    expect(outcomes.right + outcomes.cancelled + outcomes.failed).toBe(200);
  },
);
