import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { KvError } from "../../../src/errors.ts";
import { requestId } from "../../../src/ids.ts";
import type { RequestOutcome, WorkerRequest } from "../../../src/worker/request.ts";
import type { SchedulerLimits } from "../../../src/worker/scheduler_options.ts";
import { LocalTransfers } from "./local_transfers.ts";
import { type Rig, rig, spec, tokensOf } from "./scheduler_rig.ts";
import { TokenEngine } from "./token_engine.ts";

interface Pair {
  readonly transfers: LocalTransfers;
  readonly context: Rig;
  readonly generation: Rig;
}

function pair(blocks = 32, limits: Partial<SchedulerLimits> = {}): Pair {
  const transfers = new LocalTransfers();
  const options = { blocks, transfers: transfers.port.bind(transfers), limits };
  return { transfers, context: rig(options), generation: rig(options) };
}

let nextId = 1;
const contextRole = () => ({ kind: "context", contextId: requestId(nextId++) }) as const;

const generationRole = (outcome: RequestOutcome) =>
  ({
    kind: "generation",
    state: outcome.offer?.state ?? "",
    contextId: null,
    firstToken: outcome.firstToken ?? { token: -1 },
  }) as const;

const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "none",
    (error: KvError) => error.code,
  );

const edgesOf = (side: Rig, request: WorkerRequest): string[] =>
  side.changes.filter(({ requestId: id }) => id === request.spec.id).map(({ to }) => to);

async function free(side: Rig): Promise<number> {
  await side.scheduler.drain();
  await side.scheduler.close();
  return side.pool.free;
}

describe("scheduler, disaggregated", () => {
  it("answers the context request at token 0 and goes on elsewhere with the same tokens", async () => {
    const { context, generation } = pair();
    const prefill = spec(tokensOf(22), 10, { role: contextRole() });
    const contextRequest = context.scheduler.submit(prefill);
    const offered = await contextRequest.done;
    expect(prefill.output.length).toBe(1);
    expect(contextRequest.state).toBe("DISAGG_CONTEXT_TRANS_IN_PROGRESS");
    const decode = spec(tokensOf(22), 10, { role: generationRole(offered) });
    const generationRequest = generation.scheduler.submit(decode);
    await generationRequest.done;
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(22), 10));
    await offered.offer?.done;
    expect(edgesOf(context, contextRequest)).toEqual(["DISAGG_CONTEXT_TRANS_IN_PROGRESS", "DISAGG_CONTEXT_COMPLETE"]);
    expect(edgesOf(generation, generationRequest)).toEqual([
      "DISAGG_GENERATION_TRANS_IN_PROGRESS",
      "DISAGG_GENERATION_TRANS_COMPLETE",
      "GENERATION_IN_PROGRESS",
      "GENERATION_COMPLETE",
    ]);
    expect([await free(context), await free(generation)]).toEqual([32, 32]);
  });

  it("makes no offer and frees at once when token 0 ends the answer", async () => {
    const { context, transfers } = pair();
    const outcome = await context.scheduler.submit(spec(tokensOf(9), 1, { role: contextRole() })).done;
    expect(outcome).toMatchObject({ offer: null, finish: { reason: "length" } });
    const [first] = TokenEngine.oracle(tokensOf(9), 1);
    const stopTokens = new Map([[first as number, null]]);
    const stopped = await context.scheduler.submit(spec(tokensOf(9), 5, { role: contextRole(), stopTokens })).done;
    expect(stopped).toMatchObject({ offer: null, finish: { reason: "stop", stop: null } });
    expect(transfers.offers.size).toBe(0);
    expect(await free(context)).toBe(32);
  });

  it("fetches nothing for an answer of one token and lets the offer go", async () => {
    const { context, generation, transfers } = pair();
    const offered = await context.scheduler.submit(spec(tokensOf(9), 5, { role: contextRole() })).done;
    const decode = spec(tokensOf(9), 1, { role: generationRole(offered) });
    await generation.scheduler.submit(decode).done;
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(9), 1));
    expect([transfers.offers.size, transfers.fetchedBlocks]).toEqual([0, 0]);
    expect([await free(context), await free(generation)]).toEqual([32, 32]);
  });

  it("reuses prefixes on both sides and fetches only what is missing", async () => {
    const { context, generation, transfers } = pair();
    const run = async (prompt: readonly number[]): Promise<RequestOutcome> => {
      const offered = await context.scheduler.submit(spec(prompt, 6, { role: contextRole() })).done;
      const decode = spec(prompt, 6, { role: generationRole(offered) });
      const outcome = await generation.scheduler.submit(decode).done;
      expect(decode.output).toEqual(TokenEngine.oracle(prompt, 6));
      return outcome;
    };
    await run(tokensOf(23));
    const before = transfers.fetchedBlocks;
    const outcome = await run([...tokensOf(23), 3, 4, 5, 6]);
    expect(outcome.cachedTokens).toBe(20);
    expect(transfers.fetchedBlocks - before).toBe(2);
  });

  it("tells why a receive failed and keeps no block", async () => {
    const { context, generation, transfers } = pair();
    const offered = await context.scheduler.submit(spec(tokensOf(9), 5, { role: contextRole() })).done;
    transfers.failNext = new KvError("PEER_LOST", { peer: "p", epoch: "e", ms: 5 });
    const request = generation.scheduler.submit(spec(tokensOf(9), 5, { role: generationRole(offered) }));
    expect(await codeOf(request.done)).toBe("PEER_LOST");
    expect(request.state).toBe("DISAGG_TRANS_ERROR");
    const foreign = generation.scheduler.submit(
      spec(tokensOf(9), 5, {
        role: { kind: "generation", state: "foreign", contextId: null, firstToken: { token: 1 } },
      }),
    );
    expect(await codeOf(foreign.done)).toBe("BAD_STATE");
    const other = await context.scheduler.submit(spec(tokensOf(12), 5, { role: contextRole() })).done;
    const mismatch = generation.scheduler.submit(spec(tokensOf(9), 5, { role: generationRole(other) }));
    expect(await codeOf(mismatch.done)).toBe("BAD_STATE");
    expect(await free(generation)).toBe(32);
  });

  it("answers an aborted receive at once, and its blocks stay with the transport until it lets go", async () => {
    const { context, generation, transfers } = pair();
    const offered = await context.scheduler.submit(spec(tokensOf(9), 5, { role: contextRole() })).done;
    let open = (): void => {};
    transfers.gate = new Promise((resolve) => {
      open = resolve;
    });
    const request = generation.scheduler.submit(spec(tokensOf(9), 5, { role: generationRole(offered) }));
    while (request.state === "DISAGG_GENERATION_INIT") await Promise.resolve();
    generation.scheduler.abort(request, "client left");
    expect(await codeOf(request.done)).toBe("CANCELLED");
    expect(request.state).toBe("QUARANTINED");
    expect(generation.pool.free).toBe(32 - 3);
    open();
    await generation.scheduler.drain();
    expect(request.state).toBe("DISAGG_TRANS_ERROR");
    expect(generation.pool.free).toBe(32);
  });

  it("lets go of an offer when its request is aborted after the answer", async () => {
    const { context } = pair();
    const request = context.scheduler.submit(spec(tokensOf(9), 5, { role: contextRole() }));
    const outcome = await request.done;
    expect(context.scheduler.abortById(request.spec.id, "client left")).toEqual(["cancelled"]);
    expect(await codeOf(outcome.offer?.done ?? Promise.resolve())).toBe("CANCELLED");
    expect(request.state).toBe("DISAGG_TRANS_ERROR");
    expect(await free(context)).toBe(32);
  });

  it("refuses disaggregated requests without a transceiver", () => {
    const { scheduler } = rig();
    expect(() => scheduler.submit(spec(tokensOf(9), 5, { role: contextRole() }))).toThrow(/no transceiver/);
  });

  it("leaks no block on either side when pairs are aborted at any moment", async () => {
    const request = fc.record({
      length: fc.integer({ min: 1, max: 40 }),
      salt: fc.integer({ min: 0, max: 2 }),
      output: fc.integer({ min: 1, max: 10 }),
      abortContextAfter: fc.option(fc.integer({ min: 0, max: 12 }), { nil: null }),
      abortGenerationAfter: fc.option(fc.integer({ min: 0, max: 12 }), { nil: null }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: 1, maxLength: 10 }),
        fc.integer({ min: 13, max: 40 }),
        fc.constantFrom(
          { earlyShare: 0 },
          { earlyShare: 0.5, maxSeqLen: 50 },
          { earlyShare: 1, bothRoles: false, maxSeqLen: 50 },
        ),
        async (requests, blocks, limits) => {
          const { context, generation } = pair(blocks, limits);
          const later = async (side: Rig, target: WorkerRequest, turns: number | null): Promise<void> => {
            if (turns === null) return;
            for (let turn = 0; turn < turns; turn++) await Promise.resolve();
            side.scheduler.abort(target, "test");
          };
          await Promise.all(
            requests.map(async (each) => {
              const prompt = tokensOf(each.length, each.salt);
              const first = context.scheduler.submit(spec(prompt, each.output, { role: contextRole() }));
              void later(context, first, each.abortContextAfter);
              const offered = await first.done.catch(() => null);
              if (offered === null || offered.offer === null) return;
              const its = spec(prompt, each.output, { role: generationRole(offered) });
              const second = generation.scheduler.submit(its);
              void later(generation, second, each.abortGenerationAfter);
              const finished = await second.done.catch(() => null);
              if (finished !== null) expect(its.output).toEqual(TokenEngine.oracle(prompt, each.output));
              context.scheduler.abort(first, "router releases");
            }),
          );
          expect([await free(context), await free(generation)]).toEqual([blocks, blocks]);
        },
      ),
      { numRuns: 200, interruptAfterTimeLimit: 8_000 },
    );
  });
});

describe("scheduler, generation-first", () => {
  const PEER = { instance: "context-0", endpoints: ["tcp://127.0.0.1:1"] };
  const roles = () => {
    const contextId = requestId(nextId++);
    return {
      context: { kind: "context", contextId, generationFirst: true } as const,
      generation: { kind: "generation", peer: PEER, contextId } as const,
    };
  };

  it("computes for a generation worker that waits, chunk by chunk, and gives it token 0 with the last", async () => {
    const { context, generation, transfers } = pair();
    const role = roles();
    const [prefill, decode] = [
      spec(tokensOf(40), 10, { role: role.context }),
      spec(tokensOf(40), 10, { role: role.generation }),
    ];
    const first = context.scheduler.submit(prefill);
    const second = generation.scheduler.submit(decode);
    const [offered, outcome] = await Promise.all([first.done, second.done]);
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(40), 10));
    expect(prefill.output).toEqual(decode.output.slice(0, 1));
    // Steps of 16 tokens: when prefill ended, its last chunk was all that was left.
    expect(transfers.streamed).toEqual([0, 16, 32, 40]);
    await offered.offer?.done;
    expect(edgesOf(context, first)).toEqual([
      "CONTEXT_INIT",
      "DISAGG_CONTEXT_INIT_AND_TRANS",
      "DISAGG_CONTEXT_TRANS_IN_PROGRESS",
      "DISAGG_CONTEXT_COMPLETE",
    ]);
    expect(edgesOf(generation, second)).toEqual([
      "DISAGG_GENERATION_TRANS_IN_PROGRESS",
      "DISAGG_GENERATION_TRANS_COMPLETE",
      "GENERATION_IN_PROGRESS",
      "GENERATION_COMPLETE",
    ]);
    expect(outcome.cachedTokens).toBe(0);
    expect([await free(context), await free(generation)]).toEqual([32, 32]);
  });

  it("hands over the last chunk's KV while token 0 is still computed", async () => {
    const { context, generation, transfers } = pair();
    const role = roles();
    let open = (): void => {};
    context.engine.sampleGate = new Promise((resolve) => {
      open = resolve;
    });
    const first = context.scheduler.submit(spec(tokensOf(40), 5, { role: role.context }));
    const decode = spec(tokensOf(40), 5, { role: role.generation });
    const second = generation.scheduler.submit(decode);
    for (let turn = 0; turn < 100 && !transfers.streamed.includes(40); turn++) await Promise.resolve();
    expect([transfers.streamed, first.state]).toEqual([[0, 16, 32, 40], "DISAGG_CONTEXT_INIT_AND_TRANS"]);
    open();
    await Promise.all([first.done, second.done]);
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(40), 5));
  });

  it("takes no block and computes nothing before somebody waits for it", async () => {
    const { context, generation } = pair();
    const role = roles();
    const first = context.scheduler.submit(spec(tokensOf(9), 5, { role: role.context }));
    for (let turn = 0; turn < 20; turn++) await Promise.resolve();
    expect([first.state, context.pool.free, context.engine.calls]).toEqual(["DISAGG_CONTEXT_WAIT_SCHEDULER", 32, []]);
    expect(context.scheduler.load.waiting).toBe(1);
    const decode = spec(tokensOf(9), 5, { role: role.generation });
    await generation.scheduler.submit(decode).done;
    expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(9), 5));
  });

  it("leaves it to the generation worker to see that token 0 ends the answer, and reports what the context worker had cached", async () => {
    const { context, generation } = pair();
    for (const [maxTokens, cached] of [
      [1, 0],
      [3, 20],
    ] as const) {
      const role = roles();
      const decode = spec(tokensOf(22), maxTokens, { role: role.generation });
      const [, outcome] = await Promise.all([
        context.scheduler.submit(spec(tokensOf(22), maxTokens, { role: role.context })).done,
        generation.scheduler.submit(decode).done,
      ]);
      expect(decode.output).toEqual(TokenEngine.oracle(tokensOf(22), maxTokens));
      expect(outcome).toMatchObject({ cachedTokens: cached, finish: { reason: "length" } });
    }
    expect([await free(context), await free(generation)]).toEqual([32, 32]);
  });

  it("ends the prefill when its generation worker is gone", async () => {
    const { context, generation } = pair();
    const role = roles();
    let open = (): void => {};
    context.engine.gate = new Promise((resolve) => {
      open = resolve;
    });
    const first = context.scheduler.submit(spec(tokensOf(40), 5, { role: role.context }));
    const second = generation.scheduler.submit(spec(tokensOf(40), 5, { role: role.generation }));
    while (context.engine.calls.length === 0) await Promise.resolve();
    generation.scheduler.abort(second, "client left");
    expect(await codeOf(second.done)).toBe("CANCELLED");
    while (first.state !== "GENERATION_TO_COMPLETE") await Promise.resolve();
    // The engine still writes them.
    expect(context.pool.free).toBe(32 - 10);
    open();
    expect(await codeOf(first.done)).toBe("CANCELLED");
    expect(context.engine.calls).toEqual(["prefill 0+16"]);
    expect([await free(context), await free(generation)]).toEqual([32, 32]);
  });

  it("tells a generation worker that waits when the context request ends before its prefill", async () => {
    const { context, generation } = pair(4);
    const blocker = context.scheduler.submit(spec(tokensOf(12), 5, { role: contextRole() }));
    await blocker.done;
    const role = roles();
    const first = context.scheduler.submit(spec(tokensOf(9), 5, { role: role.context }));
    const second = generation.scheduler.submit(spec(tokensOf(9), 5, { role: role.generation }));
    while (first.state === "DISAGG_CONTEXT_WAIT_SCHEDULER") await Promise.resolve();
    context.scheduler.abort(first, "router aborts");
    expect(await codeOf(first.done)).toBe("CANCELLED");
    expect(await codeOf(second.done)).toBe("GONE");
    const late = roles();
    const gone = context.scheduler.submit(spec(tokensOf(9), 5, { role: late.context }));
    context.scheduler.abort(gone, "router aborts");
    const third = generation.scheduler.submit(spec(tokensOf(9), 5, { role: late.generation }));
    expect(await codeOf(third.done)).toBe("GONE");
    context.scheduler.abort(blocker, "router releases");
    expect([await free(context), await free(generation)]).toEqual([4, 4]);
  });

  it("finishes any burst, whatever the order in which the two workers get it, and leaks no block when pairs are aborted", async () => {
    const request = fc.record({
      length: fc.integer({ min: 1, max: 40 }),
      output: fc.integer({ min: 1, max: 10 }),
      contextFirst: fc.boolean(),
      delay: fc.integer({ min: 0, max: 6 }),
      abortContextAfter: fc.option(fc.integer({ min: 0, max: 40 }), { nil: null, freq: 1 }),
      abortGenerationAfter: fc.option(fc.integer({ min: 0, max: 40 }), { nil: null, freq: 1 }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: 1, maxLength: 10 }),
        fc.integer({ min: 13, max: 40 }),
        async (requests, blocks) => {
          const { context, generation } = pair(blocks);
          const turns = async (count: number): Promise<void> => {
            for (let turn = 0; turn < count; turn++) await Promise.resolve();
          };
          await Promise.all(
            requests.map(async (each, salt) => {
              const prompt = tokensOf(each.length, salt);
              const role = roles();
              const its = spec(prompt, each.output, { role: role.generation });
              const prefill = async () => context.scheduler.submit(spec(prompt, each.output, { role: role.context }));
              const decode = async () => generation.scheduler.submit(its);
              const started = each.contextFirst
                ? { first: prefill(), second: turns(each.delay).then(decode) }
                : { second: decode(), first: turns(each.delay).then(prefill) };
              const [first, second] = [await started.first, await started.second];
              const abort = async (side: Rig, target: WorkerRequest, after: number | null): Promise<void> => {
                if (after === null) return;
                await turns(after);
                side.scheduler.abort(target, "test");
              };
              void abort(context, first, each.abortContextAfter);
              void abort(generation, second, each.abortGenerationAfter);
              // As the router does: one that fails ends the other.
              first.done.catch(() => generation.scheduler.abort(second, "partner failed"));
              second.done.catch(() => context.scheduler.abort(first, "partner failed"));
              const finished = await second.done.catch(() => null);
              if (finished !== null) expect(its.output).toEqual(TokenEngine.oracle(prompt, each.output));
              else expect([each.abortContextAfter, each.abortGenerationAfter]).not.toEqual([null, null]);
            }),
          );
          expect([await free(context), await free(generation)]).toEqual([blocks, blocks]);
        },
      ),
      { numRuns: 200, interruptAfterTimeLimit: 8_000 },
    );
  });
});
