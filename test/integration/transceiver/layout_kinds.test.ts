import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { BlockOrder } from "../../../src/kv/placement.ts";
import type { BlockHold } from "../../../src/kv/pool.ts";
import { Layout } from "../../../src/layout.ts";
import { type InstanceOptions, KvInstance } from "../../../src/transceiver/instance.ts";
import { findWrongPlaced, type PlacedKv, writePlaced } from "./placed_kv.ts";

const BLOCKS = 40;
let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-kinds-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

type Shape = readonly [tp: number, pp: number, tokensPerBlock: number, order: BlockOrder];

class Placed implements PlacedKv, AsyncDisposable {
  readonly kv: KvInstance;
  readonly pool: InstanceOptions["pool"];

  private constructor(kv: KvInstance, pool: InstanceOptions["pool"]) {
    this.kv = kv;
    this.pool = pool;
  }

  static async open(layout: object, [tpSize, ppSize, tokensPerBlock, order]: Shape): Promise<Placed> {
    const pool = { memory: "host", blocks: BLOCKS, order } as const;
    const whole = Layout.parse({ ...layout, tokensPerBlock });
    return new Placed(await KvInstance.open({ layout: whole, tpSize, ppSize, pool, socketDir, verify: "full" }), pool);
  }

  blocks(tokens: number) {
    return this.kv.pool.allocate(Math.ceil(tokens / this.kv.layout.tokensPerBlock));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.kv.close();
  }
}

const plain = { layers: 6, kvHeads: 4, headDim: 8, dtype: "fp8_e5m2" };
/** What a model may keep, whether its blocks must have one size, and after how many tokens it needs none that are older. */
const kinds: Record<string, { readonly layout: object; readonly oneSize?: boolean; readonly keeps?: number }> = {
  "K and V": { layout: plain },
  "one latent for all heads": { layout: { ...plain, attention: "mla", kvHeads: 1, headDim: 36, dtype: "bf16" } },
  "one latent and the keys of an indexer": {
    layout: {
      ...plain,
      attention: "mla",
      kvHeads: 1,
      groups: [
        { name: "latent", kind: "latent", bytesPerToken: 72 },
        { name: "indexer", kind: "latent", layers: [1, 2, 5], bytesPerToken: 13 },
      ],
    },
  },
  "K and V with scales of each head and a latent beside them": {
    layout: {
      ...plain,
      groups: [
        { name: "kv", kind: "kv" },
        { name: "scales", kind: "scales", bytesPerToken: 32 },
        { name: "latent", kind: "latent", layers: [0, 5], bytesPerToken: 10 },
      ],
    },
  },
  "scales of a whole block": {
    oneSize: true,
    layout: {
      ...plain,
      groups: [
        { name: "kv", kind: "kv" },
        { name: "scales", kind: "scales", bytesPerBlock: 32 },
      ],
    },
  },
  "layers that all have windows, of which the older blocks were given back": {
    layout: {
      ...plain,
      groups: [
        { name: "near", kind: "kv", layers: [0, 2, 4], window: 7 },
        { name: "far", kind: "kv", layers: [1, 3, 5], window: 20 },
      ],
    },
    keeps: 20,
  },
  "layers with a window among others": {
    layout: {
      ...plain,
      groups: [
        { name: "full", kind: "kv", layers: [0, 3] },
        { name: "local", kind: "kv", layers: [1, 2, 4, 5], window: 20 },
      ],
    },
  },
};

const shapes: readonly Shape[] = [
  [1, 1, 8, "HND"],
  [2, 2, 8, "NHD"],
  [3, 1, 16, "HND"],
  [8, 3, 4, "NHD"],
];

/** The blocks that hold the last `keeps` tokens. */
function liveOf(blocks: BlockHold, { kv }: Placed, tokens: number, keeps: number): BlockHold {
  return blocks.share(Math.floor(Math.max(0, tokens - keeps) / kv.layout.tokensPerBlock));
}

const requests: readonly (readonly [tokens: number, skipTokens: number])[] = [
  [61, 0],
  [64, 24],
  [30, 13],
];

/** Moves some requests, the first of them while its prefill goes on. */
async function moveAll(context: Placed, generation: Placed, keeps: number): Promise<void> {
  for (const [number, [tokens, skipTokens]] of requests.entries()) {
    const source = context.blocks(tokens);
    const ready = number === 0 ? 21 : tokens;
    writePlaced(context, number, source.ids, 0, ready);
    using offered = liveOf(source, context, tokens, keeps);
    const sending = context.kv.send({ requestId: requestId(number + 1), tokens, blocks: offered, ready });
    const target = generation.blocks(tokens);
    writePlaced(generation, number, target.ids, 0, skipTokens);
    using wanted = liveOf(target, generation, tokens, keeps);
    const receiving = generation.kv.receive({ state: sending.state, blocks: wanted, skipTokens });
    if (ready < tokens) {
      for await (const arrived of receiving.progress) if (arrived >= ready) break;
      writePlaced(context, number, source.ids, ready, tokens);
      sending.ready(tokens);
    }
    offered.release();
    source.release();
    await Promise.all([receiving.done, sending.done]);
    await receiving.released;
    expect(findWrongPlaced(generation, number, target.ids, [0, tokens], tokens)).toBeNull();
    wanted.release();
    target.release();
  }
  for (const { kv } of [context, generation]) {
    expect(kv.pool.free).toBe(BLOCKS);
    expect(kv.stats()).toMatchObject({
      sends: { open: 0, failed: 0 },
      receives: { open: 0, failed: 0 },
      mismatches: 0,
    });
  }
}

describe.each(Object.entries(kinds))("%s", (_name, { layout, oneSize = false, keeps = Number.POSITIVE_INFINITY }) => {
  it("arrives in every rank of instances of any shape and order", async () => {
    const all = await Promise.all(
      shapes.map(([tp, pp, size, order]) => Placed.open(layout, [tp, pp, oneSize ? 8 : size, order])),
    );
    try {
      for (const context of all) for (const generation of all) await moveAll(context, generation, keeps);
    } finally {
      await Promise.all(all.map((one) => one[Symbol.asyncDispose]()));
    }
  });
});

it("a hold that lacks blocks which a window reaches is refused", async () => {
  const kind = kinds["layers that all have windows, of which the older blocks were given back"];
  await using one = await Placed.open(kind?.layout ?? {}, [1, 1, 8, "HND"]);
  using blocks = one.blocks(64);
  using short = blocks.share(6);
  // Tokens 44 to 63 are live: three blocks.
  expect(() => one.kv.send({ requestId: requestId(1), tokens: 64, blocks: short })).toThrow(/2 blocks.*need 3/);
});

describe("opaque bytes", () => {
  const layout = {
    ...plain,
    groups: [
      { name: "kv", kind: "kv" },
      { name: "state", kind: "opaque", bytesPerToken: 5 },
      { name: "page", kind: "opaque", layers: [0, 2, 4], bytesPerBlock: 9 },
    ],
  };

  it("move between instances of equal ranks and blocks", async () => {
    await using context = await Placed.open(layout, [2, 2, 8, "HND"]);
    await using generation = await Placed.open(layout, [2, 2, 8, "NHD"]);
    await moveAll(context, generation, Number.POSITIVE_INFINITY);
  });

  it("are refused between others, with every field that differs, with a state and without", async () => {
    await using context = await Placed.open(layout, [2, 2, 8, "HND"]);
    await using generation = await Placed.open(layout, [1, 2, 16, "HND"]);
    await using more = await Placed.open(layout, [3, 2, 8, "HND"]);
    using source = context.blocks(30);
    const sending = context.kv.send({ requestId: requestId(1), tokens: 30, blocks: source });
    using target = generation.blocks(30);
    expect(() => generation.kv.receive({ state: sending.state, blocks: target })).toThrow(
      expect.objectContaining({
        code: "LAYOUT_MISMATCH",
        message: expect.stringMatching(/tokensPerBlock here 16, there 8; tpSize here 1, there 2/),
      }),
    );
    using other = more.blocks(30);
    const peer = { instance: context.kv.instance, endpoints: context.kv.infoEndpoints };
    expect(() => more.kv.receive({ peer, requestId: requestId(2), tokens: 30, blocks: other })).toThrow(
      expect.objectContaining({ code: "LAYOUT_MISMATCH", message: expect.stringMatching(/tpSize here 3, there 2/) }),
    );
    sending.cancel();
    await sending.done.catch(() => {});
  });
});
