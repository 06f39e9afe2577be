import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { until } from "../waits.ts";
import { ask, askPair, contextHop, generationBody, Refused } from "./client.ts";
import { type Golden, goldens } from "./golden.ts";
import { expectGolden } from "./golden_check.ts";
import { blocksOf, freedOf } from "./inspect.ts";
import { EVERY_BLOCK, LeakWatch, poolWithoutReuse, smallPool } from "./no_leak.ts";
import { transceiverDefaults } from "./transceiver_defaults.ts";
import { type Overrides, type WorkerProcess, Workers, withoutReuse } from "./worker_process.ts";

/** So that the client leaves in the middle of it. */
const LONG_ANSWER = { prompt: [5, 6, 7, 8], max_tokens: 2000 };
const FAST_LEASES = { lease: { leaseMs: 600, stallMs: 1_200, strict: false } };
const offersLive = (ms: number): Overrides => ({ transceiver: { ...transceiverDefaults, kvTransferTimeoutMs: ms } });
const FAST_TIMEOUT = offersLive(2_000);

const isFree = async (worker: WorkerProcess): Promise<boolean> => {
  const { free, total } = await blocksOf(worker);
  return free === total;
};

describe("cancelled and killed requests", () => {
  const workers = new Workers();
  afterAll(() => workers[Symbol.asyncDispose]());

  it("leak nothing when 200 requests, 16 at once, are cancelled at random moments", async () => {
    const pair = {
      // Above what a full generation worker lets an offer wait, below the test's patience for abandoned ones.
      context: await workers.start({ ...smallPool, ...offersLive(10_000) }),
      generation: await workers.start(smallPool),
    };
    const both = [pair.context, pair.generation];
    const leaks = await LeakWatch.begin([pair.context], [pair.generation]);
    const short = goldens.filter(({ ids }) => ids.length < 400);
    const plans = fc.sample(
      fc.record({
        golden: fc.constantFrom(...short),
        stream: fc.boolean(),
        way: fc.constantFrom("pair", "context", "generation"),
        cancelAfterMs: fc.option(fc.integer({ min: 0, max: 120 }), { nil: null }),
      }),
      { numRuns: 200, seed: 20_261_125 },
    );
    const counts = { right: 0, cancelled: 0 };
    const queue = [...plans];
    const lane = async (): Promise<void> => {
      for (let plan = queue.pop(); plan !== undefined; plan = queue.pop()) {
        const { golden, way, cancelAfterMs } = plan;
        const signal = cancelAfterMs === null ? undefined : AbortSignal.timeout(cancelAfterMs);
        const body = {
          ...golden.body,
          ...(plan.stream ? { stream: true, stream_options: { include_usage: true } } : {}),
        };
        const options = signal === undefined ? {} : { signal };
        try {
          const reply =
            way === "pair"
              ? await askPair(pair, golden.kind, body, options)
              : await ask(pair[way].url, golden.kind, body, options);
          expect(reply).toMatchObject({ text: golden.outputText, outputTokens: golden.outputIds.length });
          counts.right++;
        } catch (error) {
          if (signal?.aborted !== true) throw error;
          counts.cancelled++;
        }
      }
    };
    await Promise.all(Array.from({ length: 16 }, lane));
    expect(counts.right + counts.cancelled).toBe(200);
    expect(Math.min(counts.right, counts.cancelled)).toBeGreaterThan(20);
    // No router here that would release the offers of pairs cancelled between their hops: these end by their own limit.
    await until("every offer has ended", async () => (await blocksOf(pair.context)).sends.open === 0, 90_000);
    const fresh = await workers.start(smallPool);
    for (const mixed of [
      { ...pair, generation: fresh },
      { ...pair, context: fresh },
    ]) {
      expectGolden(await askPair(mixed, short[0]?.kind ?? "completion", short[0]?.body ?? {}), short[0] as Golden);
    }
    await leaks.expectNone(both, fresh);
    for (const worker of both) expect(await worker.stop()).toBe(0);
  }, 150_000);

  it("free their blocks within 100 ms after the client has left", async () => {
    const pair = { context: await workers.start(withoutReuse), generation: await workers.start(withoutReuse) };
    for (const way of ["aggregated", "pair"] as const) {
      for (let attempt = 0; attempt < 3; attempt++) await leaveAndWait(pair, way);
    }
    expect(await freedOf(pair.generation)).toEqual({ inTime: 6, all: 6 });
    await Promise.all([pair.context.kill(), pair.generation.kill()]);
  });

  it("end with a code when the context worker is dead, and the generation worker keeps no block", async () => {
    const context = await workers.start({ ...poolWithoutReuse, ...FAST_LEASES });
    const generation = await workers.start({ ...poolWithoutReuse, ...FAST_LEASES, ...FAST_TIMEOUT });
    const leaks = await LeakWatch.begin([context], [generation]);
    const golden = goldens[1] as Golden;
    const hop = await contextHop(context.url, golden.kind, golden.body);
    await context.kill();
    const start = performance.now();
    const error = await ask(generation.url, golden.kind, generationBody(golden.kind, golden.body, hop)).catch(
      (thrown) => thrown,
    );
    expect(error).toBeInstanceOf(Refused);
    expect(["peer_unreachable", "peer_lost"]).toContain((error as Refused).code);
    expect((error as Refused).status).toBe(503);
    expect(performance.now() - start).toBeLessThan(4_000);
    expect(await isFree(generation)).toBe(true);
    const fresh = await workers.start(poolWithoutReuse);
    expectGolden(await askPair({ context: fresh, generation }, golden.kind, golden.body), golden);
    await leaks.expectNone([generation], fresh);
    await generation.kill();
  });

  it("end with a code when the context worker is stopped, then killed, while a transfer waits for it", async () => {
    const context = await workers.start({ ...poolWithoutReuse, ...FAST_LEASES });
    const generation = await workers.start({ ...poolWithoutReuse, ...FAST_LEASES, ...FAST_TIMEOUT });
    const leaks = await LeakWatch.begin([context], [generation]);
    const golden = goldens[1] as Golden;
    // The connection stands, only the transfer is held up.
    const hop = await contextHop(context.url, golden.kind, golden.body);
    context.child.kill("SIGSTOP");
    const start = performance.now();
    const answer = ask(generation.url, golden.kind, generationBody(golden.kind, golden.body, hop)).catch(
      (thrown) => thrown,
    );
    await until("the generation worker holds blocks", async () => !(await isFree(generation)));
    await context.kill();
    const error = await answer;
    expect(error).toBeInstanceOf(Refused);
    expect([503, 504]).toContain((error as Refused).status);
    expect(performance.now() - start).toBeLessThan(5_000);
    await until("the generation worker's blocks are free", () => isFree(generation));
    await leaks.expectNone([generation], await workers.start(poolWithoutReuse));
    await generation.kill();
  });

  it("return an offer's blocks when the generation worker is killed while it fetches", async () => {
    const context = await workers.start({ ...poolWithoutReuse, ...FAST_LEASES, ...FAST_TIMEOUT });
    const generation = await workers.start({ ...poolWithoutReuse, ...FAST_LEASES });
    const leaks = await LeakWatch.begin([context], [generation]);
    const golden = goldens[1] as Golden;
    const hop = await contextHop(context.url, golden.kind, golden.body);
    context.child.kill("SIGSTOP");
    const answer = ask(generation.url, golden.kind, generationBody(golden.kind, golden.body, hop)).catch(
      (thrown) => thrown,
    );
    await until("the generation worker holds blocks", async () => !(await isFree(generation)));
    await generation.kill();
    context.child.kill("SIGCONT");
    expect(await answer).toBeInstanceOf(Error);
    await until("the context worker's blocks are free", () => isFree(context));
    expect((await blocksOf(context)).sends.open).toBe(0);
    await leaks.expectNone([context], await workers.start(poolWithoutReuse));
    await context.kill();
  });

  it("return an offer's blocks when its generation worker never comes", async () => {
    const context = await workers.start({ ...smallPool, ...FAST_TIMEOUT });
    const generation = await workers.start(smallPool);
    const leaks = await LeakWatch.begin([context], [generation]);
    const golden = goldens[1] as Golden;
    await contextHop(context.url, golden.kind, golden.body);
    await generation.kill();
    await until("the offer has ended", async () => (await blocksOf(context)).sends.open === 0);
    await leaks.expectNone([context], await workers.start(smallPool));
    await context.kill();
  });
});

/** Leaves in the middle of an answer, and waits until the generation worker's blocks are all free. */
async function leaveAndWait(
  pair: { readonly context: WorkerProcess; readonly generation: WorkerProcess },
  way: "aggregated" | "pair",
): Promise<void> {
  const client = new AbortController();
  const body = { ...EVERY_BLOCK, ...LONG_ANSWER, stream: true };
  const options = { signal: client.signal };
  const running =
    way === "pair" ? askPair(pair, "completion", body, options) : ask(pair.generation.url, "completion", body, options);
  const ended = running.catch((error: unknown) => error);
  await until("it is being answered", async () => !(await isFree(pair.generation)));
  client.abort();
  await ended;
  await until("its blocks are free", () => isFree(pair.generation));
}
