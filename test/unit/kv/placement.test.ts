import { describe, expect, it } from "vitest";
import { blockBytesOf, blocksFor, liveBlocksFor } from "../../../src/kv/layout.ts";
import { nativeLayoutOf } from "../../../src/kv/placement.ts";
import { Layout } from "../../../src/layout.ts";

const plain = Layout.parse({ layers: 4, kvHeads: 4, headDim: 8, dtype: "bf16", tokensPerBlock: 32 });
const whole = { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 };
const second = { tpRank: 1, tpSize: 2, ppRank: 1, ppSize: 2 };

describe("a pool of our own", () => {
  it("has blocks of [layer][k|v][head][token], or of [layer][k|v][token][head]", () => {
    const hnd = nativeLayoutOf(plain, whole, {});
    expect(hnd.blockBytes).toBe(4 * 2 * 4 * 32 * 16);
    expect(hnd.groups).toMatchObject([
      { planes: 2, heads: 4, firstHead: 0, elementBytes: 16, tokenStride: 16, headStride: 512, planeStride: 2048 },
    ]);
    expect(hnd.groups[0]?.blockStride).toBe(hnd.blockBytes);
    expect([...(hnd.groups[0]?.bases ?? [])]).toEqual([0, 4096, 8192, 12288]);
    const nhd = nativeLayoutOf(plain, whole, { order: "NHD" });
    expect(nhd.groups).toMatchObject([{ headStride: 16, tokenStride: 64, planeStride: 2048 }]);
    expect(nhd.blockBytes).toBe(hnd.blockBytes);
  });

  it("holds the rank's share, groups by name, each from a cache line on", () => {
    const layout = Layout.parse({
      ...plain,
      groups: [
        { name: "scales", kind: "scales", bytesPerToken: 8, layers: [1, 2] },
        { name: "kv", kind: "kv" },
        { name: "latent", kind: "latent", bytesPerToken: 3, layers: [3], window: 50 },
      ],
    });
    const { groups, blockBytes } = nativeLayoutOf(layout, second, { order: "NHD" });
    const places = groups.map(({ layers, bases }) => [[...layers], [...bases]]);
    // Stage 1 has layers 2 and 3, rank 1 heads 2 and 3.
    expect(places).toEqual([
      [
        [2, 3],
        [0, 2048],
      ],
      [[3], [4096]],
      [[2], [4096 + 128]],
    ]);
    expect(groups).toMatchObject([
      { heads: 2, firstHead: 2, replicated: false, tokenStride: 32, headStride: 16 },
      { heads: 1, firstHead: 0, replicated: true, elementBytes: 3, window: 50, tokenStride: 3 },
      { heads: 2, planes: 2, elementBytes: 1, tokenStride: 2, headStride: 1, planeStride: 64 },
    ]);
    expect(blockBytes).toBe(4096 + 128 + 128);
    expect(blockBytesOf(layout)).toBe(16384 + 128 + 512);
  });
});

describe("the blocks that a sequence needs", () => {
  const windows = (...all: readonly (number | undefined)[]) =>
    Layout.parse({
      ...plain,
      groups: all.map((window, index) => ({
        name: `${index}`,
        kind: "kv",
        ...(window === undefined ? {} : { window }),
      })),
    });

  it("are all of them, unless every group has a window: then those that the widest reaches", () => {
    for (const layout of [plain, windows(undefined, 40)])
      expect(liveBlocksFor(200, layout)).toBe(blocksFor(200, layout));
    expect(blocksFor(200, plain)).toBe(7);
    // Tokens 100 on, from block 3 of 0 to 6.
    expect(liveBlocksFor(200, windows(40, 100))).toBe(4);
    expect(liveBlocksFor(100, windows(40, 100))).toBe(4);
    expect(liveBlocksFor(200, windows(1))).toBe(1);
  });
});
