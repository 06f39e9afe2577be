import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BlockId, requestId } from "../../../src/ids.ts";
import { liveBlocksFor } from "../../../src/kv/layout.ts";
import type { BlockHold } from "../../../src/kv/pool.ts";
import { KvInstance } from "../../../src/transceiver/instance.ts";
import { layoutOf, rankPools } from "../../../src/worker/engine_pools.ts";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { type Shape, sizesOf } from "../transceiver/instance_shapes.ts";
import { type RandomLlama, uniform, writeRandomLlama } from "./gguf_writer.ts";

const models: Record<
  string,
  {
    readonly model: RandomLlama;
    readonly kv: "f32" | "bf16";
    readonly windows?: readonly number[];
    readonly shapes: readonly Shape[];
  }
> = {
  "24 KV heads, 5 layers": {
    model: { seed: 31, layers: 5, heads: 24, kvHeads: 24, headDim: 16, feedForward: 64 },
    kv: "f32",
    shapes: [
      [1, 1, 32],
      [2, 1, 32],
      [3, 1, 32],
      [4, 1, 16],
      [8, 1, 32],
      [2, 2, 64, "NHD"],
      [8, 3, 32],
    ],
  },
  "8 KV heads for 16, 7 layers": {
    model: { seed: 34, layers: 7, heads: 16, kvHeads: 8, headDim: 16, feedForward: 64 },
    kv: "f32",
    shapes: [
      [1, 1, 32],
      [2, [6, 1], 32],
      [3, 1, 16, "NHD"],
      [4, [2, 4, 1], 32],
      [8, 1, 64, "NHD"],
      [3, [1, 1, 5], 32],
    ],
  },
  "2 KV heads for 6, 3 layers": {
    model: { seed: 35, layers: 3, heads: 6, kvHeads: 2, headDim: 16, feedForward: 64 },
    kv: "f32",
    shapes: [
      [1, 1, 32],
      [3, 1, 32],
      [4, [1, 2], 16],
      [8, 1, 32],
      [3, 3, 32],
    ],
  },
  "3 KV heads for 6, 4 layers, bf16": {
    model: { seed: 32, layers: 4, heads: 6, kvHeads: 3, headDim: 16, feedForward: 64 },
    kv: "bf16",
    shapes: [
      [1, 1, 32],
      [1, 1, 32, "NHD"],
      [3, 1, 8],
      [6, 1, 32],
      [1, 3, 48],
      [3, 4, 32],
    ],
  },
  "1 KV head for 4, 3 layers": {
    model: { seed: 33, layers: 3, heads: 4, kvHeads: 1, headDim: 32, feedForward: 64 },
    kv: "f32",
    shapes: [
      [1, 1, 32],
      [2, 1, 32],
      [8, 1, 16],
      [1, 2, 32],
      [4, 3, 32],
      [2, 1, 32, "NHD", 0],
      [2, 1, 32, "HND", 1],
    ],
  },
  "windows in three of five layers": {
    model: { seed: 36, layers: 5, heads: 8, kvHeads: 4, headDim: 16, feedForward: 64 },
    kv: "f32",
    windows: [0, 40, 16, 0, 40],
    shapes: [
      [1, 1, 32],
      [2, 1, 16, "NHD"],
      [3, [1, 4], 64],
      [8, 2, 32],
    ],
  },
  "a window in every layer, older blocks given back": {
    model: { seed: 37, layers: 3, heads: 4, kvHeads: 2, headDim: 16, feedForward: 64 },
    kv: "bf16",
    windows: [40, 16, 40],
    shapes: [
      [1, 1, 16],
      [2, 1, 8, "NHD"],
      [4, 3, 32],
    ],
  },
};

const PROMPT = 150;
const STEPS = 3;
/** Tokens that a generation side has already: none, so many that the last lies inside a block, or two whole blocks and more. */
const REUSED_INSIDE = 37;
const reusedWhole = (tokensPerBlock: number): number => Math.ceil(64 / tokensPerBlock) * tokensPerBlock;
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvt-pairs-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const bits = (values: Float32Array): string => Buffer.from(values.buffer).toString("base64");

/** An engine whose KV is spread over the ranks of an instance. */
class Spread implements AsyncDisposable {
  readonly engine: ReferenceEngine;
  readonly kv: KvInstance;

  private constructor(engine: ReferenceEngine, kv: KvInstance) {
    this.engine = engine;
    this.kv = kv;
  }

  static async open(file: string, { kv, windows }: (typeof models)[string], shape: Shape): Promise<Spread> {
    const [, , tokensPerBlock, order = "HND"] = shape;
    const engine = await ReferenceEngine.load(file, { kv, tokensPerBlock, ...(windows && { windows }) });
    const blocks = 64;
    const layout = layoutOf(engine.geometry);
    const instance = await KvInstance.open({
      layout,
      ...sizesOf(shape),
      pool: { memory: "host", blocks, order },
      socketDir: join(folder, "sockets"),
    });
    engine.attachRanks(rankPools(instance), blocks);
    return new Spread(engine, instance);
  }

  allocate(tokens: number) {
    return this.kv.pool.allocate(Math.ceil(tokens / this.kv.layout.tokensPerBlock));
  }

  /** The likeliest tokens after `first` and what follows it, and the logits that say so, from `startPos` on. */
  async decode(first: number, startPos: number, blockTable: readonly BlockId[]): Promise<Decoded> {
    const tokens = [first];
    const rows: string[] = [];
    for (let step = 0; step < STEPS; step++) {
      const one = Uint32Array.of(tokens[step] as number);
      const logits = await this.engine.logits({ tokens: one, startPos: startPos + step, blockTable });
      rows.push(bits(logits));
      tokens.push(logits.indexOf(logits.reduce((best, value) => Math.max(best, value))));
    }
    return { tokens, rows };
  }

  /** Blocks of a sequence that any layer needs: where every layer has a window, not the first. */
  live(blocks: BlockHold, tokens: number): BlockHold {
    const { layout } = this.kv;
    const end = Math.ceil(tokens / layout.tokensPerBlock);
    return blocks.share(end - liveBlocksFor(tokens, layout), end);
  }

  /**
   * Every vector that the ranks hold of the first `tokens` tokens, but for those that windows leave behind: by layer, plane, head and token, as
   * many times as it is kept.
   */
  *vectors(blocks: readonly BlockId[], tokens: number): Generator<readonly [key: string, bytes: Buffer]> {
    const { layout, ranks } = this.kv;
    for (const { memory, groups } of ranks) {
      for (const group of groups) {
        const live = group.window === 0 ? 0 : Math.max(0, tokens - group.window);
        for (const [index, layer] of group.layers.entries()) {
          for (const [plane, name] of ["k", "v"].entries()) {
            for (let head = 0; head < group.heads; head++) {
              const row = (group.bases[index] ?? 0) + plane * group.planeStride + head * group.headStride;
              for (let token = live; token < tokens; token++) {
                const block = blocks[Math.floor(token / layout.tokensPerBlock)] as BlockId;
                const at = block * group.blockStride + (token % layout.tokensPerBlock) * group.tokenStride;
                const bytes = Buffer.from(memory, row + at, group.elementBytes);
                yield [`${layer}${name}${group.firstHead + head}.${token}`, bytes];
              }
            }
          }
        }
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.close();
    await this.kv.close();
  }
}

interface Decoded {
  readonly tokens: readonly number[];
  readonly rows: readonly string[];
}

interface Move {
  readonly context: Spread;
  readonly generation: Spread;
  readonly prompt: Uint32Array;
  readonly source: BlockHold;
  readonly target: BlockHold;
  readonly reused: number;
  readonly streamed: boolean;
  readonly id: number;
}

/** All at once, after prefill, or chunk by chunk while it goes on. */
async function move({ context, generation, prompt, source, target, reused, streamed, id }: Move): Promise<void> {
  const tokens = prompt.length;
  const prefill = (from: number, to: number) =>
    context.engine.prefill({ tokens: prompt.slice(from, to), startPos: from, blockTable: source.ids });
  if (!streamed) await prefill(0, tokens);
  if (reused > 0) {
    await generation.engine.prefill({ tokens: prompt.slice(0, reused), startPos: 0, blockTable: target.ids });
  }
  const ready = streamed ? 0 : tokens;
  using offered = context.live(source, tokens);
  using wanted = generation.live(target, tokens);
  const sending = context.kv.send({ requestId: requestId(id), tokens, blocks: offered, ready });
  const receiving = generation.kv.receive({ state: sending.state, blocks: wanted, skipTokens: reused });
  for (let from = ready; from < tokens; from += 53) {
    const to = Math.min(tokens, from + 53);
    await prefill(from, to);
    sending.ready(to);
  }
  await Promise.all([receiving.done, sending.done]);
}

/** Every way to hand KV over, for each pair. */
const waysTo = ({ kv }: Spread) =>
  [0, REUSED_INSIDE, reusedWhole(kv.layout.tokensPerBlock)].flatMap((reused) =>
    [false, true].map((streamed) => ({ reused, streamed })),
  );

describe.each(Object.entries(models))("%s", (_name, chosen) => {
  it("has the KV bytes, the tokens and the logits bits of the unspread run in every rank that KV was moved to, from any shape", async () => {
    const { model, shapes } = chosen;
    const file = join(folder, `${model.seed}.gguf`);
    writeRandomLlama(file, model);
    const random = uniform(model.seed);
    const token = () => Math.floor(random() * 300);
    const prompt = Uint32Array.from({ length: PROMPT }, token);
    const first = token();

    await using whole = await Spread.open(file, chosen, [1, 1, 32]);
    using origin = whole.allocate(PROMPT + STEPS);
    await whole.engine.prefill({ tokens: prompt, startPos: 0, blockTable: origin.ids });
    const expected = new Map<string, Buffer>();
    for (const [key, bytes] of whole.vectors(origin.ids, PROMPT)) expected.set(key, Buffer.from(bytes));
    const expectedDecode = await whole.decode(first, PROMPT, origin.ids);
    expect(new Set(expectedDecode.tokens).size).toBeGreaterThan(1);

    const instances = await Promise.all(shapes.map((shape) => Spread.open(file, chosen, shape)));
    try {
      let id = 0;
      for (const [from, context] of instances.entries()) {
        for (const [to, generation] of instances.entries()) {
          if (from === to) continue;
          for (const way of waysTo(generation)) {
            const pair = `${shapes[from]} to ${shapes[to]}, ${JSON.stringify(way)}`;
            const source = context.allocate(PROMPT);
            const target = generation.allocate(PROMPT + STEPS);
            await move({ context, generation, prompt, source, target, ...way, id: ++id });
            source.release();
            let seen = 0;
            for (const [key, bytes] of generation.vectors(target.ids, PROMPT)) {
              seen++;
              if (expected.get(key)?.equals(bytes) !== true) throw new Error(`${pair}: ${key} differs`);
            }
            expect(seen).toBeGreaterThanOrEqual(expected.size);
            expect(await generation.decode(first, PROMPT, target.ids), pair).toEqual(expectedDecode);
            target.release();
          }
        }
      }
      for (const { kv: instance } of instances) expect(instance.pool.free).toBe(instance.pool.total);
    } finally {
      await Promise.all(instances.map((instance) => instance[Symbol.asyncDispose]()));
    }
  }, 240_000);
});
