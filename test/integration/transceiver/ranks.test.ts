import { describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { KvInstance } from "../../../src/transceiver/instance.ts";
import { decodeState, encodeState } from "../../../src/transceiver/opaque_state.ts";
import { allocateFor, BLOCKS, openShape, type Shape, socketDirOf } from "./instance_shapes.ts";
import { findWrongKv, writeKv } from "./made_up_kv.mjs";

const socketDir = socketDirOf("ranks");

const open = (shape: Shape, kvHeads = 4): Promise<KvInstance> => openShape(shape, { socketDir }, { kvHeads });

function expectAllFree(...instances: KvInstance[]): void {
  for (const instance of instances) {
    expect(instance.pool.free).toBe(BLOCKS);
    const { sends, receives, blocks } = instance.stats();
    expect([sends.open, receives.open, blocks.pinned, blocks.quarantined]).toEqual([0, 0, 0, 0]);
  }
}

/** Tokens of a request, of which the first were here already. */
const requests: readonly (readonly [tokens: number, skipTokens: number])[] = [
  [61, 0],
  [64, 24],
  [40, 13],
  [30, 30],
];

async function moveAll(context: KvInstance, generation: KvInstance): Promise<void> {
  const { layers, kvHeads, headDim } = generation.layout;
  for (const [number, [tokens, skipTokens]] of requests.entries()) {
    const source = allocateFor(context, tokens);
    writeKv(context, number, source.ids, 0, tokens);
    const sending = context.send({ requestId: requestId(number + 1), tokens, blocks: source });
    source.release();
    const target = allocateFor(generation, tokens);
    writeKv(generation, number, target.ids, 0, skipTokens);
    const receiving = generation.receive({ state: sending.state, blocks: target, skipTokens });
    const [report] = await Promise.all([receiving.done, sending.done]);
    await receiving.released;
    expect(findWrongKv(generation, number, target.ids, 0, tokens)).toBeNull();
    // Each head once, or once for each of the receiver's ranks that keep it.
    const copies = Math.max(1, generation.sizes.tpSize / kvHeads);
    expect(report.bytes).toBe((tokens - skipTokens) * layers * 2 * kvHeads * headDim * 4 * copies);
    target.release();
  }
  expectAllFree(context, generation);
}

const shapes: readonly Shape[] = [
  [1, 1, 8],
  [2, 1, 8],
  [4, 1, 8],
  [8, 1, 16],
  [1, 2, 8],
  [1, 3, 4],
  [1, 5, 16],
  [2, 2, 16],
  [4, 2, 8],
];

describe.each(shapes.map((shape) => [shape] as const))("from tp, pp, tokens per block %j", (from) => {
  it("every head of every layer arrives in every rank of instances of any shape, and nothing stays held", async () => {
    await using context = await open(from);
    for (const to of shapes) {
      await using generation = await open(to);
      await moveAll(context, generation);
    }
  });
});

it("heads that TP does not divide, and stages of any length, go to and come from any other instance", async () => {
  await using three = await open([3, [3, 2], 8], 8);
  await using eight = await open([8, 1, 16], 8);
  await using two = await open([2, [1, 4], 4], 8);
  for (const [from, to] of [
    [three, eight],
    [eight, three],
    [three, two],
    [two, three],
  ] as const) {
    await moveAll(from, to);
  }
});

it("three ranks hold the heads of a model that has three, six read each of them twice", async () => {
  await using context = await open([3, 1, 8], 3);
  for (const to of [
    [1, 1, 8],
    [6, 1, 8],
    [3, 2, 4],
  ] as const) {
    await using generation = await open(to, 3);
    await moveAll(context, generation);
    await moveAll(generation, context);
  }
});

it("data is fetched by all ranks while prefill goes on, and progress is what has arrived everywhere", async () => {
  await using context = await open([4, 2, 8]);
  await using generation = await open([2, 1, 16]);
  const source = allocateFor(context, 64);
  writeKv(context, 1, source.ids, 0, 20);
  const sending = context.send({ requestId: requestId(1), tokens: 64, blocks: source, ready: 20 });
  using target = allocateFor(generation, 64);
  const receiving = generation.receive({ state: sending.state, blocks: target });
  const seen: number[] = [];
  for await (const tokens of receiving.progress) {
    seen.push(tokens);
    if (tokens === 64) break;
    expect(findWrongKv(generation, 1, target.ids, 0, tokens)).toBeNull();
    const next = Math.min(64, tokens + 23);
    writeKv(context, 1, source.ids, tokens, next);
    sending.ready(next);
  }
  expect(seen).toEqual([20, 43, 64]);
  await Promise.all([receiving.done, sending.done]);
  expect(findWrongKv(generation, 1, target.ids, 0, 64)).toBeNull();
  source.release();
  expect(context.pool.free).toBe(BLOCKS);
});

it("ranks that no reader needs let go at once, not by their offer timer", async () => {
  await using context = await open([8, 1, 8]);
  await using generation = await open([1, 1, 8]);
  const source = allocateFor(context, 40);
  const sending = context.send({ requestId: requestId(1), tokens: 40, blocks: source });
  source.release();
  using target = allocateFor(generation, 40);
  await generation.receive({ state: sending.state, blocks: target }).done;
  // Without a word to them this would take the minute of the offer timer.
  await sending.done;
  expectAllFree(context);
  expect(context.stats().sends).toMatchObject({ completed: 8, failed: 0 });
});

/** A transfer of 64 tokens of which the first 8 have arrived; the others are not computed. */
async function firstTokensMoved(context: KvInstance, generation: KvInstance) {
  const source = allocateFor(context, 64);
  const sending = context.send({ requestId: requestId(1), tokens: 64, blocks: source, ready: 8 });
  source.release();
  const target = allocateFor(generation, 64);
  const receiving = generation.receive({ state: sending.state, blocks: target });
  for await (const tokens of receiving.progress) if (tokens === 8) break;
  return { sending, receiving, target };
}

it("a receive that is cancelled ends every rank's offer and leaves nothing held", async () => {
  await using context = await open([2, 2, 8]);
  await using generation = await open([4, 1, 8]);
  const { sending, receiving, target } = await firstTokensMoved(context, generation);
  receiving.cancel("test");
  target.release();
  await expect(receiving.done).rejects.toMatchObject({ code: "CANCELLED" });
  await expect(sending.done).rejects.toMatchObject({ code: "CANCELLED" });
  await receiving.released;
  expectAllFree(context, generation);
});

it("a send that is cancelled ends every rank's pull with its cause", async () => {
  await using context = await open([4, 1, 8]);
  await using generation = await open([2, 2, 8]);
  const { sending, receiving, target } = await firstTokensMoved(context, generation);
  expect(sending.cancel("test")).toBe("in_flight");
  target.release();
  await expect(receiving.done).rejects.toMatchObject({ code: "SENDER_ABORTED" });
  await expect(sending.done).rejects.toMatchObject({ code: "CANCELLED" });
  await receiving.released;
  expectAllFree(context, generation);
});

it.each([
  [
    [4, 2, 8],
    [2, 1, 16],
  ],
  [
    [1, 1, 8],
    [4, 2, 8],
  ],
  [
    [8, 1, 16],
    [1, 3, 4],
  ],
] as const)(
  "generation-first from %j to %j: all ranks wait for the offer, and the first token ends it",
  async (from, to) => {
    await using context = await open(from);
    await using generation = await open(to);
    const target = allocateFor(generation, 60);
    const peer = { instance: context.instance, endpoints: context.infoEndpoints };
    const receiving = generation.receive({ peer, requestId: requestId(9), tokens: 60, blocks: target });
    await context.awaitPull(requestId(9));
    const source = allocateFor(context, 60);
    writeKv(context, 9, source.ids, 0, 60);
    const sending = context.send({ requestId: requestId(9), tokens: 60, blocks: source, ready: 20 });
    source.release();
    sending.ready(60);
    const first = { firstTokens: [7], firstLogProbs: [{ logprob: -1, top: [] }], cachedTokens: 0 };
    sending.finish(first);
    expect((await receiving.done).first).toEqual(first);
    await sending.done;
    await receiving.released;
    expect(findWrongKv(generation, 9, target.ids, 0, 60)).toBeNull();
    target.release();
    expectAllFree(context, generation);
  },
);

it("a generation-first receive that is cancelled leaves nobody waiting on either side", async () => {
  await using context = await open([8, 1, 8]);
  await using generation = await open([1, 1, 8]);
  const target = allocateFor(generation, 60);
  const peer = { instance: context.instance, endpoints: context.infoEndpoints };
  const receiving = generation.receive({ peer, requestId: requestId(9), tokens: 60, blocks: target });
  target.release();
  await context.awaitPull(requestId(9));
  receiving.cancel("test");
  await expect(receiving.done).rejects.toMatchObject({ code: "CANCELLED" });
  await generation.drain();
  expectAllFree(generation);
});

it("a state that lacks a rank whose part is needed is refused before anything begins", async () => {
  await using context = await open([2, 1, 8]);
  await using generation = await open([1, 1, 8]);
  const source = allocateFor(context, 8);
  const sending = context.send({ requestId: requestId(1), tokens: 8, blocks: source });
  source.release();
  const state = decodeState(sending.state);
  using target = allocateFor(generation, 8);
  const short = encodeState({ ...state, ranks: state.ranks.slice(0, 1) });
  expect(() => generation.receive({ state: short, blocks: target })).toThrow(/rank 1/);
  expect(generation.stats().receives.open).toBe(0);
  sending.cancel();
  await expect(sending.done).rejects.toMatchObject({ code: "CANCELLED" });
});

it("an instance's state names every rank, and its holder ends the offers of all of them", async () => {
  await using context = await open([2, 2, 8]);
  const source = allocateFor(context, 20);
  const sending = context.send({ requestId: requestId(1), tokens: 20, blocks: source });
  source.release();
  const state = decodeState(sending.state);
  expect(state).toMatchObject({ tpSize: 2, ppSize: 2, tokens: 20, layout: { layers: 5, kvHeads: 4 } });
  expect(state.ranks.map(({ rank }) => rank)).toEqual([0, 1, 2, 3]);
  expect(context.stats().blocks.pinned).toBe(3);
  expect(context.release(sending.state)).toBe("cancelled");
  await expect(sending.done).rejects.toMatchObject({ code: "CANCELLED" });
  expect(context.release(sending.state)).toBe("already_complete");
  expectAllFree(context);
  expect(await context.waitForSenders({ atLeast: 1 })).toMatchObject([{ error: { code: "CANCELLED" } }]);
});

it("sizes that the model can't be spread over are refused with their names", async () => {
  await expect(open([1, 6, 8])).rejects.toMatchObject({ code: "INVALID_ARGUMENT", message: /ppSize 6/ });
});
