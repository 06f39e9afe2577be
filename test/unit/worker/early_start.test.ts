import { describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { SchedulerLimits } from "../../../src/worker/scheduler_options.ts";
import { LocalTransfers } from "./local_transfers.ts";
import { rig, spec, tokensOf } from "./scheduler_rig.ts";
import { TokenEngine } from "./token_engine.ts";

const PEER = { instance: "context", endpoints: ["local"] };
let nextId = 1;
const roles = () => {
  const contextId = requestId(nextId++);
  return {
    context: { kind: "context", contextId, generationFirst: true } as const,
    generation: { kind: "generation", peer: PEER, contextId } as const,
  };
};

/** 32 blocks of 4 tokens; the largest request there can be has 16. */
function pair(limits: Partial<SchedulerLimits> = {}) {
  const transfers = new LocalTransfers();
  const common = { blocks: 32, transfers: transfers.port.bind(transfers) };
  const some = { earlyShare: 0.5, maxSeqLen: 64, ...limits };
  return { transfers, context: rig({ ...common, limits: some }), generation: rig(common) };
}
const turns = async (count = 20): Promise<void> => {
  for (let turn = 0; turn < count; turn++) await Promise.resolve();
};

describe("a generation-first prefill that nobody has asked for", () => {
  it("begins at once while blocks are plentiful; who asks later gets all of it and token 0", async () => {
    const { context, generation, transfers } = pair();
    const role = roles();
    const first = context.scheduler.submit(spec(tokensOf(40), 6, { role: role.context }));
    const { offer } = await first.done;
    expect(context.engine.calls).toEqual(["prefill 0+16", "prefill 16+16", "prefill 32+8"]);
    expect(transfers.streamed).toEqual([]);
    const decode = spec(tokensOf(40), 6, { role: role.generation });
    await generation.scheduler.submit(decode).done;
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(40), 6));
    await offer?.done;
    for (const side of [context, generation]) {
      await side.scheduler.close();
      expect(side.pool.free).toBe(32);
    }
  });

  it("is streamed to who asks in the middle of it", async () => {
    const { context, generation, transfers } = pair();
    const role = roles();
    let open = (): void => {};
    context.engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    context.scheduler.submit(spec(tokensOf(40), 6, { role: role.context }));
    while (context.engine.calls.length === 0) await Promise.resolve();
    const decode = spec(tokensOf(40), 6, { role: role.generation });
    const done = generation.scheduler.submit(decode).done;
    await turns();
    open();
    await done;
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(40), 6));
    expect(transfers.streamed).toEqual([0, 16, 32, 40]);
  });

  it.each<[string, Partial<SchedulerLimits>, number]>([
    ["holds at most its share of the pool with its like", { earlyShare: 0.5 }, 2],
    ["leaves room for the largest request there can be", { earlyShare: 1, maxSeqLen: 96 }, 1],
    ["leaves half of the batch", { earlyShare: 1, maxBatchSize: 2 }, 1],
    ["waits for its reader when there is no share", { earlyShare: 0 }, 0],
  ])("%s", async (_what, limits, started) => {
    const { context } = pair(limits);
    context.engine.gate = new Promise(() => {});
    const requests = [0, 1, 2].map((salt) =>
      context.scheduler.submit(spec(tokensOf(32, salt), 2, { role: roles().context })),
    );
    await turns();
    expect(requests.map(({ startedEarly }) => startedEarly)).toEqual(requests.map((_, index) => index < started));
    expect(context.pool.total - context.pool.free).toBe(8 * started);
    expect(context.scheduler.load.waiting).toBe(3 - started);
  });

  it("does not overtake one that waits", async () => {
    // The first is too large for the share: it waits for its reader.
    const { context: other } = pair({ earlyShare: 0.25 });
    const [big, small] = [60, 8].map((length) =>
      other.scheduler.submit(spec(tokensOf(length), 2, { role: roles().context })),
    );
    await turns();
    expect([big?.startedEarly, small?.startedEarly]).toEqual([false, false]);
  });

  it("keeps no block from one whose reader waits: they are free for it beside all that began early", async () => {
    const { context, generation } = pair({ earlyShare: 1 });
    const orphans = [0, 1, 2].map((salt) =>
      context.scheduler.submit(spec(tokensOf(32, salt), 2, { role: roles().context })),
    );
    await turns(60);
    expect(orphans.map(({ startedEarly }) => startedEarly)).toEqual([true, true, false]);
    const role = roles();
    const decode = spec(tokensOf(60, 5), 4, { role: role.generation });
    const done = generation.scheduler.submit(decode).done;
    context.scheduler.submit(spec(tokensOf(60, 5), 4, { role: role.context }));
    await done;
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(60, 5), 4));
  });

  it("gives everything back when it is given up before anybody has asked", async () => {
    const { context } = pair();
    let open = (): void => {};
    context.engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const request = context.scheduler.submit(spec(tokensOf(40), 6, { role: roles().context }));
    while (context.engine.calls.length === 0) await Promise.resolve();
    context.scheduler.abort(request, "router aborts");
    open();
    await expect(request.done).rejects.toMatchObject({ code: "CANCELLED" });
    await context.scheduler.close();
    expect(context.pool.free).toBe(32);
  });
});
