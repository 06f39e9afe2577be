import { describe, expect, it } from "vitest";
import { KvError } from "../../../src/errors.ts";
import { requestId } from "../../../src/ids.ts";
import type { RequestOutcome } from "../../../src/worker/request.ts";
import { LocalTransfers } from "./local_transfers.ts";
import { rig, spec, tokensOf } from "./scheduler_rig.ts";
import { TokenEngine } from "./token_engine.ts";

/** The first `length` of tokensOf(40), then others. */
const branch = (length: number, ...more: readonly number[]): number[] => [...tokensOf(40).slice(0, length), ...more];

describe("reuse inside a block", () => {
  it("copies the beginning of a block that goes on otherwise, and computes the rest", async () => {
    const { scheduler, engine, pool } = rig({ reuseParts: true });
    await scheduler.submit(spec(tokensOf(16), 2)).done;
    engine.calls.length = 0;
    const other = spec(branch(10, 90, 91, 92, 93), 3);
    const outcome = await scheduler.submit(other).done;
    expect(outcome.cachedTokens).toBe(10);
    expect(engine.calls.slice(0, 2)).toEqual(["copy 2", "prefill 10+4"]);
    expect(other.output).toEqual(TokenEngine.oracle([...other.prompt], 3));
    // The first one's blocks are as they were.
    const again = spec(tokensOf(16), 2);
    await scheduler.submit(again).done;
    expect(again.output).toEqual(TokenEngine.oracle(tokensOf(16), 2));
    await scheduler.close();
    expect(pool.free).toBe(pool.total);
  });

  it("goes on after the very last token of a conversation, and computes one token of a prompt that is all there", async () => {
    const { scheduler, engine } = rig({ reuseParts: true });
    const first = spec(tokensOf(41), 9);
    await scheduler.submit(first).done;
    const prompt = [...tokensOf(41), ...first.output, 1, 2, 3];
    const second = spec(prompt, 3);
    // 41 + 9 tokens, of which the last was never evaluated.
    expect((await scheduler.submit(second).done).cachedTokens).toBe(49);
    expect(second.output).toEqual(TokenEngine.oracle(prompt, 3));
    engine.calls.length = 0;
    const third = spec(tokensOf(40), 2);
    expect((await scheduler.submit(third).done).cachedTokens).toBe(39);
    expect(engine.calls.slice(0, 2)).toEqual(["copy 3", "prefill 39+1"]);
    expect(third.output).toEqual(TokenEngine.oracle(tokensOf(40), 2));
  });

  it("does without when the block to copy is the one that is lacking", async () => {
    const { scheduler, pool } = rig({ reuseParts: true, blocks: 5 });
    await scheduler.submit(spec(tokensOf(16), 5)).done;
    const all = spec(branch(10, 90, 91, 92), 8);
    expect((await scheduler.submit(all).done).cachedTokens).toBe(8);
    expect(all.output).toEqual(TokenEngine.oracle([...all.prompt], 8));
    await scheduler.close();
    expect(pool.free).toBe(5);
  });

  it("ends the request when the copy fails, and keeps no block of it", async () => {
    const { scheduler, engine, pool } = rig({ reuseParts: true, blocks: 8 });
    await scheduler.submit(spec(tokensOf(6), 2)).done;
    engine.failNext = new KvError("INTERNAL", { where: "test", why: "copy" });
    const request = scheduler.submit(spec(branch(5, 90, 91), 2));
    await expect(request.done).rejects.toMatchObject({ code: "INTERNAL" });
    await scheduler.drain();
    expect(pool.free + scheduler.load.cachedBlocks).toBe(8);
    expect(scheduler.load.evictableBlocks).toBe(scheduler.load.cachedBlocks);
  });
});

describe("reuse inside a block, disaggregated", () => {
  const pair = () => {
    const transfers = new LocalTransfers();
    const options = { blocks: 32, transfers: transfers.port.bind(transfers), reuseParts: true };
    return { transfers, context: rig(options), generation: rig(options) };
  };
  let nextId = 1;

  it("fetches only the tokens that the generation side does not have", async () => {
    const { context, generation, transfers } = pair();
    const run = async (prompt: readonly number[]): Promise<RequestOutcome> => {
      const role = { kind: "context", contextId: requestId(nextId++) } as const;
      const { offer, firstToken } = await context.scheduler.submit(spec(prompt, 6, { role })).done;
      if (offer === null || firstToken === null) throw new Error("no offer");
      const decode = spec(prompt, 6, { role: { kind: "generation", state: offer.state, contextId: null, firstToken } });
      const outcome = await generation.scheduler.submit(decode).done;
      expect(decode.output).toEqual(TokenEngine.oracle(prompt, 6));
      return outcome;
    };
    await run(tokensOf(23));
    const turn = [...tokensOf(23), ...TokenEngine.oracle(tokensOf(23), 6), 3, 4, 5];
    transfers.fetchedTokens = 0;
    // All but the last token of the answer, which nobody evaluated.
    expect((await run(turn)).cachedTokens).toBe(28);
    expect(transfers.fetchedTokens).toBe(32 - 28);
    // The context side has computed the prompts, not the answer.
    expect(context.engine.calls.filter((call) => !call.startsWith("decode"))).toEqual([
      "prefill 0+16",
      "prefill 16+7",
      "copy 3",
      "prefill 23+9",
    ]);
    for (const side of [context, generation]) {
      await side.scheduler.close();
      expect(side.pool.free).toBe(32);
    }
  });

  it("goes on when the copy is done too, and holds both blocks until then, whatever becomes of the request", async () => {
    const { context, generation } = pair();
    const decodeOf = async (prompt: readonly number[]) => {
      const role = { kind: "context", contextId: requestId(nextId++) } as const;
      const { offer, firstToken } = await context.scheduler.submit(spec(prompt, 6, { role })).done;
      if (offer === null || firstToken === null) throw new Error("no offer");
      return spec(prompt, 6, { role: { kind: "generation", state: offer.state, contextId: null, firstToken } });
    };
    const { scheduler, engine, pool } = generation;
    await scheduler.submit(await decodeOf(tokensOf(18))).done;
    const decode = await decodeOf(branch(18, 90, 91, 92));
    let open = (): void => {};
    engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const request = scheduler.submit(decode);
    for (let turn = 0; turn < 50; turn++) await Promise.resolve();
    expect(engine.calls).toContain("copy 2");
    expect(request.state).toBe("DISAGG_GENERATION_TRANS_IN_PROGRESS");
    scheduler.abort(request, "client left");
    for (let turn = 0; turn < 50; turn++) await Promise.resolve();
    const { cachedBlocks, evictableBlocks } = scheduler.load;
    // The target is nobody's but the copy's; the source, and the four blocks that lead to it, stay in the cache.
    expect([pool.total - pool.free, evictableBlocks]).toEqual([cachedBlocks + 1, cachedBlocks - 5]);
    open();
    await scheduler.drain();
    for (let turn = 0; turn < 50; turn++) await Promise.resolve();
    expect([pool.total - pool.free, scheduler.load.evictableBlocks]).toEqual([cachedBlocks, cachedBlocks]);
  });

  it("says that a copied token is ready when it is there, not before", async () => {
    const { context, generation, transfers } = pair();
    await context.scheduler.submit(spec(tokensOf(23), 2)).done;
    let open = (): void => {};
    context.engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const contextId = requestId(nextId++);
    const peer = { instance: "context", endpoints: ["local"] };
    const prompt = branch(23, 90, 91, 92);
    const decode = spec(prompt, 4, { role: { kind: "generation", peer, contextId } });
    const done = generation.scheduler.submit(decode).done;
    const prefill = context.scheduler.submit(
      spec(prompt, 4, { role: { kind: "context", contextId, generationFirst: true } }),
    ).done;
    // Nothing but microtasks runs here; what takes more of them than this never comes.
    for (let turns = 0; turns < 10_000 && !context.engine.calls.includes("copy 3"); turns++) await Promise.resolve();
    expect(context.engine.calls).toContain("copy 3");
    open();
    await Promise.all([prefill, done]);
    expect(decode.output).toEqual(TokenEngine.oracle(prompt, 4));
    expect(transfers.streamed[0]).toBe(20);
  });
});
