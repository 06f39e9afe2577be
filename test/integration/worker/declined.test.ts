import { afterAll, describe, expect, it } from "vitest";
import { until } from "../waits.ts";
import { ask, type Body, contextHop, generationBody, post } from "./client.ts";
import { type Golden, goldens } from "./golden.ts";
import { blocksOf, freedOf, holdsNothing } from "./inspect.ts";
import { type WorkerProcess, Workers, withoutReuse } from "./worker_process.ts";

/** 2,048 tokens: one request with so much output holds every block of the pool. */
const POOL: object = { kvCache: { ...withoutReuse.kvCache, maxTokens: 2048 } };
const EVERY_BLOCK: Body = { prompt: [5, 6, 7], max_tokens: 2045, ignore_eos: true, temperature: 0, stream: true };

describe("a generation request that ends before it has fetched", () => {
  const workers = new Workers();
  afterAll(() => workers[Symbol.asyncDispose]());
  const golden = goldens[1] as Golden;

  /** Until the offer is gone, in ms; no router is here that would release it, and its own timer is 60 s. */
  const untilGone = (context: WorkerProcess): Promise<number> =>
    until("the offer is gone", () => holdsNothing(context), 90_000);

  it("tells the context worker, whose blocks are free within 100 ms after the client has left", async () => {
    const [context, generation] = await Promise.all([workers.start(withoutReuse), workers.start(POOL)]);
    for (let attempt = 0; attempt < 3; attempt++) {
      const running = new AbortController();
      const full = ask(generation.url, "completion", EVERY_BLOCK, { signal: running.signal }).catch(() => {});
      await until("the pool is full", async () => (await blocksOf(generation)).free === 0);
      const hop = await contextHop(context.url, golden.kind, golden.body);
      const leaving = new AbortController();
      const { prompt: _prompt, ...rest } = golden.body;
      const body = generationBody(golden.kind, golden.kind === "chat" ? golden.body : rest, hop);
      const left = ask(generation.url, golden.kind, body, { signal: leaving.signal }).catch((error) => error);
      await until("it waits for blocks", () => isWaiting(generation));
      expect((await blocksOf(context)).sends.open).toBe(1);
      leaving.abort();
      // A timer, of the offer or its lease, would take ten seconds at least.
      expect(await untilGone(context)).toBeLessThan(5_000);
      expect(await left).toBeInstanceOf(Error);
      running.abort();
      await full;
      await until("the pool is free again", () => holdsNothing(generation));
    }
    // The one that leaves the queue, and the one whose answer nobody waits for: 3 of each; on the other side the offer.
    expect(await freedOf(generation)).toEqual({ inTime: 6, all: 6 });
    await Promise.all([context.kill(), generation.kill()]);
  });

  it("because its first token is the answer, tells it too", async () => {
    const [context, generation] = await Promise.all([workers.start(withoutReuse), workers.start(withoutReuse)]);
    const hop = await contextHop(context.url, golden.kind, golden.body);
    await post(generation.url, "/v1/completions", generationBody("completion", { max_tokens: 1 }, hop));
    await untilGone(context);
    await Promise.all([context.kill(), generation.kill()]);
  });
});

const isWaiting = async ({ url }: WorkerProcess): Promise<boolean> =>
  /^kvt_worker_requests\{[^}]*"waiting"[^}]*\} 1$/m.test(await (await fetch(`${url}/prometheus/metrics`)).text());
