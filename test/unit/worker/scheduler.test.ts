import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { KvError } from "../../../src/errors.ts";
import { rig, spec, tokensOf } from "./scheduler_rig.ts";
import { TokenEngine } from "./token_engine.ts";

const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "none",
    (error: KvError) => error.code,
  );

describe("scheduler", () => {
  it("gives every request the tokens it would get alone", async () => {
    const { scheduler } = rig();
    const specs = [1, 5, 17, 40, 63].map((length, index) => spec(tokensOf(length, index), 12));
    await Promise.all(specs.map((each) => scheduler.submit(each).done));
    for (const each of specs) expect(each.output).toEqual(TokenEngine.oracle([...each.prompt], 12));
  });

  it("computes a long prompt in steps of bounded size", async () => {
    const { scheduler, engine } = rig({ limits: { stepTokens: 16 } });
    const long = spec(tokensOf(50), 2);
    await scheduler.submit(long).done;
    expect(engine.calls.slice(0, 4)).toEqual(["prefill 0+16", "prefill 16+16", "prefill 32+16", "prefill 48+2"]);
    expect(long.output).toEqual(TokenEngine.oracle(tokensOf(50), 2));
  });

  it("does not let a long prompt hold back a short one that came later", async () => {
    const { scheduler } = rig({ blocks: 128, limits: { stepTokens: 16 } });
    const order: string[] = [];
    const long = scheduler.submit(spec(tokensOf(200), 2)).done.then(() => order.push("long"));
    const short = scheduler.submit(spec(tokensOf(6, 3), 2)).done.then(() => order.push("short"));
    await Promise.all([long, short]);
    expect(order).toEqual(["short", "long"]);
  });

  it("serves prompts in turn when a step has room for one of them only", async () => {
    const { scheduler, engine } = rig({ blocks: 128, limits: { stepTokens: 4 } });
    const prompts = [1, 2, 3].map((salt) => scheduler.submit(spec(tokensOf(12, salt), 1)));
    await Promise.all(prompts.map(({ done }) => done));
    expect(engine.calls.slice(0, 6)).toEqual([
      ...Array.from({ length: 3 }, () => "prefill 0+4"),
      ...Array.from({ length: 3 }, () => "prefill 4+4"),
    ]);
  });

  it("keeps decoding while a prompt is computed", async () => {
    const { scheduler, engine } = rig({ blocks: 128, limits: { stepTokens: 8 } });
    const running = scheduler.submit(spec(tokensOf(4), 30)).done;
    const long = scheduler.submit(spec(tokensOf(160, 2), 2)).done;
    await running;
    const prefills = engine.calls.filter((call) => call.startsWith("prefill")).length;
    expect(prefills).toBeLessThan(30);
    await long;
  });

  it("computes no prefix twice, also not of an answer that became a prompt", async () => {
    const { scheduler, engine } = rig({ blocks: 128 });
    const first = spec(tokensOf(41), 9);
    await scheduler.submit(first).done;
    engine.calls.length = 0;
    const prompt = [...tokensOf(41), ...first.output, 1, 2, 3];
    const second = spec(prompt, 3);
    const outcome = await scheduler.submit(second).done;
    // 41 + 9 tokens, of which the last was never evaluated: 12 full blocks of 4.
    expect(outcome.cachedTokens).toBe(48);
    expect(engine.calls[0]).toBe("prefill 48+5");
    expect(second.output).toEqual(TokenEngine.oracle(prompt, 3));
  });

  it("always computes at least one prompt token, even when all blocks are cached", async () => {
    const { scheduler } = rig();
    await scheduler.submit(spec(tokensOf(16), 2)).done;
    const again = spec(tokensOf(16), 2);
    const outcome = await scheduler.submit(again).done;
    expect(outcome.cachedTokens).toBe(12);
    expect(again.output).toEqual(TokenEngine.oracle(tokensOf(16), 2));
  });

  it("serves a request that needs every block after the cache has filled the pool", async () => {
    const { scheduler, pool } = rig({ blocks: 16 });
    for (let salt = 0; salt < 6; salt++) await scheduler.submit(spec(tokensOf(30, salt), 4)).done;
    expect(pool.free).toBeLessThan(16);
    const all = spec(tokensOf(40, 9), 25);
    await scheduler.submit(all).done;
    expect(all.output).toEqual(TokenEngine.oracle(tokensOf(40, 9), 25));
  });

  it("keeps what does not fit waiting, in order, and finishes it", async () => {
    const { scheduler } = rig({ blocks: 10, reusePrefixes: false });
    const order: number[] = [];
    const big = scheduler.submit(spec(tokensOf(20), 20)).done.then(() => order.push(0));
    const alsoBig = scheduler.submit(spec(tokensOf(20, 1), 20)).done.then(() => order.push(1));
    const small = scheduler.submit(spec(tokensOf(2, 2), 2)).done.then(() => order.push(2));
    await Promise.resolve();
    await Promise.resolve();
    expect(scheduler.load.waiting).toBe(2);
    await Promise.all([big, alsoBig, small]);
    // The small one would have fitted at once: nobody overtakes, so nobody starves.
    expect(order[0]).toBe(0);
  });

  it("refuses what it could never finish and what the queue has no place for", () => {
    const { scheduler } = rig({ blocks: 4, limits: { maxQueueSize: 1, maxSeqLen: 64 } });
    const attempt = (tokens: number, output: number): string => {
      try {
        scheduler.submit(spec(tokensOf(tokens), output));
        return "accepted";
      } catch (error) {
        return (error as KvError).code;
      }
    };
    expect(attempt(0, 1)).toBe("INVALID_REQUEST");
    expect(attempt(64, 1)).toBe("PROMPT_TOO_LONG");
    expect(attempt(16, 49)).toBe("INVALID_REQUEST");
    expect(attempt(16, 2)).toBe("PROMPT_TOO_LONG");
    expect(attempt(16, 1)).toBe("accepted");
    expect(attempt(1, 1)).toBe("QUEUE_FULL");
  });

  it("refuses a prompt longer than max_num_tokens, and lives", async () => {
    const { scheduler } = rig({ limits: { maxPromptTokens: 16 } });
    expect(() => scheduler.submit(spec(tokensOf(17), 1))).toThrow(/17 tokens/);
    const fits = spec(tokensOf(16), 20);
    const other = spec(tokensOf(16, 1), 20);
    await Promise.all([scheduler.submit(fits).done, scheduler.submit(other).done]);
    expect(other.output).toEqual(TokenEngine.oracle(tokensOf(16, 1), 20));
  });

  it("gives up a request that waited too long for blocks", async () => {
    const { scheduler, engine } = rig({ blocks: 4, limits: { queueTimeoutMs: 5 } });
    let open = (): void => {};
    engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const running = scheduler.submit(spec(tokensOf(10), 4));
    const waiting = scheduler.submit(spec(tokensOf(10, 1), 4));
    expect(await codeOf(waiting.done)).toBe("ADMISSION_TIMEOUT");
    open();
    await running.done;
  });

  it("frees the blocks of a request aborted in the middle of a step when that step ends, not before", async () => {
    const { scheduler, engine, pool } = rig({ blocks: 16 });
    let open = (): void => {};
    engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const request = scheduler.submit(spec(tokensOf(10), 10));
    await Promise.resolve();
    await Promise.resolve();
    expect(engine.calls.length).toBe(1);
    scheduler.abort(request, "test");
    expect(request.state).toBe("GENERATION_TO_COMPLETE");
    expect(pool.free).toBeLessThan(16);
    open();
    expect(await codeOf(request.done)).toBe("CANCELLED");
    expect(pool.free).toBe(16);
  });

  it("fails the requests of a step that the engine failed, and goes on with others", async () => {
    const { scheduler, engine, pool } = rig({ blocks: 32 });
    engine.failNext = new Error("broken on purpose");
    const failed = scheduler.submit(spec(tokensOf(8), 4));
    expect(await codeOf(failed.done)).toBe("INTERNAL");
    const next = spec(tokensOf(8), 4);
    await scheduler.submit(next).done;
    expect(next.output).toEqual(TokenEngine.oracle(tokensOf(8), 4));
    await scheduler.close();
    expect(pool.free).toBe(32);
  });

  it("says that it is not well while an engine step does not end", async () => {
    let now = 0;
    const { scheduler, engine } = rig({ limits: { stepLimitMs: 1_000 }, nowMs: () => now });
    let open = (): void => {};
    engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const request = scheduler.submit(spec(tokensOf(8), 1));
    while (engine.calls.length === 0) await Promise.resolve();
    now = 999;
    expect(scheduler.problems).toEqual([]);
    now = 1_001;
    expect(scheduler.problems).toEqual(["an engine step has run for more than 1000 ms"]);
    open();
    await request.done;
    await scheduler.drain();
    expect(scheduler.problems).toEqual([]);
  });

  it("ends what runs with CLOSED when it is closed, a code that a router takes elsewhere", async () => {
    const { scheduler, pool } = rig({ blocks: 32 });
    const requests = [1, 2, 3].map((salt) => scheduler.submit(spec(tokensOf(30, salt), 30)));
    await scheduler.close();
    for (const request of requests) expect(await codeOf(request.done)).toBe("CLOSED");
    expect(pool.free).toBe(32);
  });

  it("drains: refuses new requests and finishes what it has", async () => {
    const { scheduler } = rig();
    const running = spec(tokensOf(10), 10);
    const request = scheduler.submit(running);
    const drained = scheduler.drain();
    expect(() => scheduler.submit(spec(tokensOf(3), 1))).toThrow(/draining/);
    await drained;
    expect(running.output.length).toBe(10);
    await request.done;
  });

  it("ends at a stop token or where the text says so, and reports which", async () => {
    const { scheduler } = rig();
    const full = TokenEngine.oracle(tokensOf(9), 8);
    const stop = full[3] as number;
    const first = full.indexOf(stop);
    const byToken = spec(tokensOf(9), 8, { stopTokens: new Map([[stop, stop]]) });
    const outcome = await scheduler.submit(byToken).done;
    expect(outcome.finish).toEqual({ reason: "stop", stop });
    expect(byToken.output).toEqual(full.slice(0, first + 1));
    const byText = await scheduler.submit(
      spec(tokensOf(9), 8, { onToken: (_, index) => (index === 1 ? { reason: "stop", stop: "END" } : null) }),
    ).done;
    expect(byText).toMatchObject({ finish: { reason: "stop", stop: "END" }, outputTokens: 2 });
  });

  it("leaks no block under any interleaving of submits and aborts, and every answer that completes is right", async () => {
    const request = fc.record({
      length: fc.integer({ min: 1, max: 40 }),
      salt: fc.integer({ min: 0, max: 3 }),
      output: fc.integer({ min: 1, max: 20 }),
      abortAfter: fc.option(fc.integer({ min: 0, max: 25 }), { nil: null }),
      waitBefore: fc.integer({ min: 0, max: 4 }),
    });
    const config = fc.record({
      blocks: fc.integer({ min: 16, max: 48 }),
      maxBatchSize: fc.integer({ min: 1, max: 6 }),
      stepTokens: fc.integer({ min: 1, max: 32 }),
      reuse: fc.constantFrom({ reusePrefixes: false }, { reusePrefixes: true }, { reuseParts: true }),
      requests: fc.array(request, { minLength: 1, maxLength: 14 }),
    });
    await fc.assert(
      fc.asyncProperty(config, async ({ blocks, maxBatchSize, stepTokens, reuse, requests }) => {
        const { scheduler, pool } = rig({ blocks, ...reuse, limits: { maxBatchSize, stepTokens } });
        const ends: Promise<void>[] = [];
        for (const each of requests) {
          for (let turn = 0; turn < each.waitBefore; turn++) await Promise.resolve();
          const its = spec(tokensOf(each.length, each.salt), each.output);
          const submitted = scheduler.submit(its);
          const end = submitted.done.then(
            () => expect(its.output).toEqual(TokenEngine.oracle([...its.prompt], each.output)),
            (error: KvError) => expect(error.code).toBe("CANCELLED"),
          );
          ends.push(end);
          if (each.abortAfter === null) continue;
          const turns = each.abortAfter;
          ends.push(
            (async () => {
              for (let turn = 0; turn < turns; turn++) await Promise.resolve();
              scheduler.abort(submitted, "test");
            })(),
          );
        }
        await Promise.all(ends);
        await scheduler.drain();
        const { cachedBlocks, evictableBlocks } = scheduler.load;
        expect(pool.free + cachedBlocks).toBe(blocks);
        expect(evictableBlocks).toBe(cachedBlocks);
        await scheduler.close();
        expect(pool.free).toBe(blocks);
      }),
      { numRuns: 300, interruptAfterTimeLimit: 8_000 },
    );
  });
});
