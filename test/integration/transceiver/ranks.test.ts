import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import { type InstanceOptions, KvInstance } from "../../../src/transceiver/instance.ts";
import { decodeState } from "../../../src/transceiver/opaque_state.ts";
import { findWrongKv, writeKv } from "./ranked_kv.ts";

const BLOCKS = 16;
let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-ranks-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

type Shape = readonly [tp: number, pp: number];

async function open([tpSize, ppSize]: Shape, more: Partial<InstanceOptions> = {}): Promise<KvInstance> {
  const layout = { layers: 5, kvHeads: 2, headDim: 16, dtype: "f32", tokensPerBlock: 8, attention: "gqa" } as const;
  return KvInstance.open({ layout, tpSize, ppSize, pool: { memory: "host", blocks: BLOCKS }, socketDir, ...more });
}

const blocksOf = (instance: KvInstance, tokens: number) =>
  instance.pool.allocate(Math.ceil(tokens / instance.layout.tokensPerBlock));

function expectAllFree(...instances: KvInstance[]): void {
  for (const instance of instances) {
    expect(instance.pool.free).toBe(BLOCKS);
    const { sends, receives, blocks } = instance.stats();
    expect([sends.open, receives.open, blocks.pinned, blocks.quarantined]).toEqual([0, 0, 0, 0]);
  }
}

const equal: readonly Shape[] = [
  [1, 1],
  [2, 1],
  [1, 2],
  [2, 2],
  [4, 1],
];

describe.each(equal.map((shape) => [shape, shape] as const))("from %j to %j", (from, to) => {
  it("every head of every layer arrives in every rank, and nothing stays held", async () => {
    await using context = await open(from);
    await using generation = await open(to);
    for (const [number, [tokens, skipTokens]] of [
      [61, 0],
      [64, 24],
      [40, 13],
      [30, 30],
    ].entries() as Iterable<[number, [number, number]]>) {
      const source = blocksOf(context, tokens);
      writeKv(context, number, source.ids, 0, tokens);
      const sending = context.send({ requestId: requestId(number + 1), tokens, blocks: source });
      source.release();
      const target = blocksOf(generation, tokens);
      writeKv(generation, number, target.ids, 0, skipTokens);
      const receiving = generation.receive({ state: sending.state, blocks: target, skipTokens });
      const [report] = await Promise.all([receiving.done, sending.done]);
      await receiving.released;
      expect(findWrongKv(generation, number, target.ids, 0, tokens)).toBeNull();
      // Each head once, or once for each replica of the receiver.
      const copies = Math.max(1, to[0] / 2);
      expect(report.bytes).toBe((tokens - skipTokens) * 5 * 2 * 2 * 16 * 4 * copies);
      target.release();
    }
    expectAllFree(context, generation);
  });
});

it("an instance's state names every rank, and its holder ends the offers of all of them", async () => {
  await using context = await open([2, 2]);
  const source = blocksOf(context, 20);
  const sending = context.send({ requestId: requestId(1), tokens: 20, blocks: source });
  source.release();
  const state = decodeState(sending.state);
  expect(state).toMatchObject({ tpSize: 2, ppSize: 2, tokens: 20, layout: { layers: 5, kvHeads: 2 } });
  expect(state.ranks.map(({ rank }) => rank)).toEqual([0, 1, 2, 3]);
  expect(context.stats().blocks.pinned).toBe(3);
  expect(context.release(sending.state)).toBe("cancelled");
  await expect(sending.done).rejects.toMatchObject({ code: "CANCELLED" });
  expect(context.release(sending.state)).toBe("already_complete");
  expectAllFree(context);
  expect(await context.waitForSenders({ atLeast: 1 })).toMatchObject([{ error: { code: "CANCELLED" } }]);
});

it("sizes that the model can't be spread over are refused with their names", async () => {
  await expect(open([3, 1])).rejects.toMatchObject({ code: "INVALID_ARGUMENT", message: /tpSize 3/ });
  await expect(open([1, 6])).rejects.toMatchObject({ code: "INVALID_ARGUMENT", message: /ppSize 6/ });
});
