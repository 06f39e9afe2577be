import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BlockId } from "../../../src/ids.ts";
import { KvInstance } from "../../../src/transceiver/instance.ts";
import { layoutOf, rankPools } from "../../../src/worker/engine_pools.ts";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { writeRandomLlama } from "./gguf_writer.ts";

const SIZE = 16;
const id = (block: number): BlockId => block as BlockId;

describe.each([
  ["f32", 1, 1],
  ["bf16", 4, 2],
] as const)("the beginning of a block of %s over tp %i, pp %i", (kv, tpSize, ppSize) => {
  let folder: string;
  let engine: ReferenceEngine;
  let instance: KvInstance;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "kvt-copy-"));
    const file = join(folder, "random.gguf");
    writeRandomLlama(file, { seed: 7, layers: 3, heads: 4, kvHeads: 2, headDim: 16, feedForward: 64 });
    engine = await ReferenceEngine.load(file, { kv, tokensPerBlock: SIZE });
    instance = await KvInstance.open({
      layout: layoutOf(engine.geometry),
      tpSize,
      ppSize,
      pool: { memory: "host", blocks: 16 },
    });
    engine.attachRanks(rankPools(instance), 16);
  });
  afterAll(async () => {
    await instance.close();
    await engine.close();
    rmSync(folder, { recursive: true });
  });

  const tokens = Uint32Array.from({ length: 40 }, (_, index) => (index * 31 + 3) % 97);
  const bytesOf = (block: number): Buffer =>
    Buffer.concat(
      instance.ranks.map(({ memory, blockBytes }) =>
        Buffer.from(new Uint8Array(memory, block * blockBytes, blockBytes)),
      ),
    );

  it("gives the bits of a prefill, and leaves what is behind it alone", async () => {
    await engine.prefill({ tokens, startPos: 0, blockTable: [0, 1, 2].map(id) });
    for (const { memory, blockBytes } of instance.ranks) new Uint8Array(memory, 3 * blockBytes, blockBytes).fill(0xa5);
    const taken = 11;
    await engine.copyTokens(id(1), id(3), taken);
    // All of a head's tokens lie together, so the copied share of each block is that of its tokens.
    const [source, copy] = [bytesOf(1), bytesOf(3)];
    const isCopied = copy.map((byte, at) => (byte === source[at] ? 1 : 0)).reduce((sum, each) => sum + each, 0);
    const untouched = copy.reduce((count, byte) => count + (byte === 0xa5 ? 1 : 0), 0);
    expect(isCopied).toBeGreaterThanOrEqual((source.length * taken) / SIZE);
    expect(untouched).toBeGreaterThanOrEqual((source.length * (SIZE - taken)) / SIZE);

    const branch = Uint32Array.of(...tokens.subarray(0, SIZE + taken), 90, 91, 92);
    const whole = await engine.logits({ tokens: branch, startPos: 0, blockTable: [4, 5].map(id) });
    const from = SIZE + taken;
    const table = [0, 3].map(id);
    const reused = await engine.logits({ tokens: branch.subarray(from), startPos: from, blockTable: table });
    expect(reused).toEqual(whole);
  });

  it("is refused outside the pool, onto itself and for more tokens than a block has", async () => {
    for (const [source, target, count] of [
      [16, 1, 1],
      [1, 16, 1],
      [1, 1, 1],
      [1, 2, 0],
      [1, 2, SIZE + 1],
    ] as const) {
      await expect(engine.copyTokens(id(source), id(target), count)).rejects.toMatchObject({
        code: "INVALID_ARGUMENT",
      });
    }
  });
});
