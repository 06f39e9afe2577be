import { mkdtempSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, test } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { Placement } from "../../../src/kv/placement.ts";
import type { Layout } from "../../../src/layout.ts";
import type { OpenOptions } from "../../../src/transceiver/api.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";
import { ForeignMemory, hasPython } from "./foreign_memory.mjs";
import { findWrongKv, writeKv } from "./made_up_kv.mjs";

const BLOCKS = 16;
const TOKENS = 61;
const layout = { layers: 4, kvHeads: 2, headDim: 8, dtype: "bf16", tokensPerBlock: 8, attention: "gqa" } as const;
const whole = { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 };

let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-adopted-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

const VECTOR = 16;
/** One tensor, [2, layers, blocks, tokens, heads, headDim]. */
const BYTES = 1 << 20;
const placement: Placement = {
  kv: {
    bases: [0, 1, 2, 3].map((layer) => layer * BLOCKS * 8 * 2 * VECTOR),
    strides: { plane: 4 * BLOCKS * 8 * 2 * VECTOR, block: 8 * 2 * VECTOR, token: 2 * VECTOR, head: VECTOR },
  },
};

interface Opened extends AsyncDisposable {
  readonly transceiver: KvTransceiver;
  readonly layout: Layout;
  readonly ranks: readonly [KvTransceiver];
}

async function open(pool: OpenOptions["pool"], of: Layout = layout): Promise<Opened> {
  const transceiver = await KvTransceiver.open({ layout: of, parallel: whole, pool, socketDir, verify: "full" });
  return { transceiver, layout: of, ranks: [transceiver], [Symbol.asyncDispose]: () => transceiver.close() };
}

async function move(from: Opened, to: Opened, number: number): Promise<void> {
  const blocksFor = ({ layout: { tokensPerBlock } }: Opened) => Math.ceil(TOKENS / tokensPerBlock);
  using source = from.transceiver.pool.allocate(blocksFor(from));
  using target = to.transceiver.pool.allocate(blocksFor(to));
  writeKv(from, number, source.ids, 0, TOKENS);
  const sending = from.transceiver.send({ requestId: requestId(number), tokens: TOKENS, blocks: source });
  await to.transceiver.receive({ state: sending.state, blocks: target }).done;
  await sending.done;
  expect(findWrongKv(to, number, target.ids, 0, TOKENS)).toBeNull();
}

test.skipIf(!hasPython)("a placement that does not fit its layout or its memory is refused by name", async () => {
  using memory = await ForeignMemory.open(BYTES);
  const { bases, strides } = placement.kv as Placement[string];
  const refused = async (changed: Placement, words: RegExp, size = BYTES): Promise<void> => {
    const pool = { adopt: [{ fd: memory.fd, offset: 0, bytes: size }], blocks: BLOCKS, placement: changed };
    await expect(open(pool)).rejects.toMatchObject({ code: "INVALID_ARGUMENT", message: expect.stringMatching(words) });
  };
  await refused({}, /options\.pool\.placement .*it lacks the group kv/);
  await refused({ kv: { bases, strides }, v: { bases, strides } }, /placement\.v .*the layout has no such group/);
  await refused({ kv: { bases: bases.slice(1), strides } }, /placement\.kv\.bases .*there are 3 for 4 layers/);
  await refused(
    { kv: { bases, strides: { ...strides, head: undefined } } },
    /placement\.kv\.strides\.head .*it is missing/,
  );
  await refused({ kv: { bases, strides: { ...strides, token: 8 } } }, /overlap/);
  await refused({ kv: { bases: [0, 0, 1000, 2000], strides } }, /overlap/);
  await refused({ kv: { bases, strides: { ...strides, plane: 1 << 20 } } }, /outside the pool/);
  await refused(placement, /outside the pool of 4096 bytes/, 4096);
});

/** K and V of one layer, [2, blocks, tokens, heads, headDim]: what an engine allocates for each layer by itself. */
const LAYER_BYTES = 2 * BLOCKS * 8 * 2 * VECTOR;
const layerStrides = { plane: LAYER_BYTES / 2, block: 8 * 2 * VECTOR, token: 2 * VECTOR, head: VECTOR };

describe.skipIf(!hasPython)("a pool of several regions", () => {
  it("is read and written where each layer lies: tensors of their own, two of them in one memfd, in any order", async () => {
    using memory = await ForeignMemory.open(2 * LAYER_BYTES, 3);
    const [first = -1, second = -1, third = -1] = memory.fds;
    const adopt = [
      { fd: third, offset: LAYER_BYTES, bytes: LAYER_BYTES },
      { fd: first, offset: 0, bytes: LAYER_BYTES },
      { fd: third, offset: 0, bytes: LAYER_BYTES },
      { fd: second, offset: 4096, bytes: LAYER_BYTES },
    ];
    const bases = [2, 0, 3, 1].map((region) => ({ region, offset: 0 }));
    const placement = { kv: { bases, strides: layerStrides } };
    await using adopted = await open({ adopt, blocks: BLOCKS, placement });
    await using own = await open({ memory: "host", blocks: BLOCKS });
    await move(adopted, own, 1);
    await move(own, adopted, 2);
    // Layer 1 begins region 0, as the owner of that memfd sees it: at the second half of the third.
    const seen = Buffer.alloc(VECTOR);
    readSync(third, seen, 0, VECTOR, LAYER_BYTES);
    expect(seen.equals(Buffer.from(adopted.transceiver.memory, 0, VECTOR))).toBe(true);
    expect(seen.some((byte) => byte !== 0)).toBe(true);
  });

  it("is opened with more layers, each in a memfd of its own, than one message carries files", async () => {
    const layers = 300;
    const one = { ...layout, layers, kvHeads: 1, headDim: 8, tokensPerBlock: 8 };
    const bytes = 4096;
    using memory = await ForeignMemory.open(bytes, layers);
    const adopt = memory.fds.map((fd) => ({ fd, offset: 0, bytes }));
    const bases = adopt.map((_, region) => ({ region, offset: 0 }));
    const strides = { plane: bytes / 2, block: 8 * VECTOR, token: VECTOR, head: VECTOR };
    await using adopted = await open({ adopt, blocks: BLOCKS, placement: { kv: { bases, strides } } }, one);
    await using own = await open({ memory: "host", blocks: BLOCKS }, one);
    await move(adopted, own, 1);
    await move(own, adopted, 2);
  });

  it("is refused where a place is in no region, or regions share bytes", async () => {
    using memory = await ForeignMemory.open(4 * LAYER_BYTES);
    const { fd } = memory;
    const adopt = [0, 1, 2, 3].map((layer) => ({ fd, offset: layer * LAYER_BYTES, bytes: LAYER_BYTES }));
    const pool = (last: object, regions = adopt) => {
      const bases = [...[0, 1, 2].map((region) => ({ region, offset: 0 })), last] as Placement[string]["bases"];
      return open({ adopt: regions, blocks: BLOCKS, placement: { kv: { bases, strides: layerStrides } } });
    };
    await expect(pool({ region: 4, offset: 0 })).rejects.toThrow(/placement\.kv\.bases.*there is no region 4/);
    await expect(pool({ region: 3, offset: LAYER_BYTES })).rejects.toThrow(/is not in region 3/);
    await expect(pool({ region: 3, offset: 4096 })).rejects.toThrow(/outside the pool/);
    await expect(pool({ region: 2, offset: 0 })).rejects.toThrow(/overlap/);
    const twice = adopt.map((region, at) => (at === 3 ? { ...region, offset: 4096 } : region));
    await expect(pool({ region: 3, offset: 0 }, twice)).rejects.toMatchObject({
      code: "MEMORY_REFUSED",
      message: expect.stringMatching(/adopt\[3\] and adopt\[0\] share bytes/),
    });
  });
});

describe.skipIf(!hasPython)("KVT_CHECK of a pool whose blocks lie anywhere", () => {
  const before = process.env.KVT_CHECK;
  beforeAll(() => {
    process.env.KVT_CHECK = "1";
  });
  afterAll(() => {
    if (before === undefined) delete process.env.KVT_CHECK;
    else process.env.KVT_CHECK = before;
  });

  it("finds a write into a free block's element, wherever that lies, and says nothing of what is between", async () => {
    const row = 8 * 24;
    const placement = {
      kv: { bases: [0, 9000, 18_000, 27_000], strides: { block: 4 * row, plane: 2 * row, head: row, token: 24 } },
    };
    const bytes = 1 << 16;
    using memory = await ForeignMemory.open(bytes);
    await using adopted = await open({ adopt: [{ fd: memory.fd, offset: 0, bytes }], blocks: 10, placement });
    await using own = await open({ memory: "host", blocks: BLOCKS });
    await move(own, adopted, 1);
    await move(adopted, own, 2);
    const { pool } = adopted.transceiver;
    const byte = new Uint8Array(adopted.transceiver.memory);
    // Block 2, layer 3, V, head 1, token 7: its last byte, and the padding behind it.
    const last = 27_000 + 2 * 4 * row + 2 * row + row + 7 * 24 + VECTOR - 1;
    byte[last + 1] = (byte[last + 1] ?? 0) ^ 1;
    pool.allocate(10).release();
    byte[last] = (byte[last] ?? 0) ^ 1;
    expect(() => pool.allocate(10)).toThrow(/block 2 was written while it was free/);
  });
});
