import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BlockId, requestId } from "../../../src/ids.ts";
import type { BlockHold } from "../../../src/kv/pool.ts";
import { type ParallelSizes, placeOf, shareOf } from "../../../src/kv/ranks.ts";
import { KvInstance } from "../../../src/transceiver/instance.ts";
import { layoutOf, rankPools } from "../../../src/worker/engine_pools.ts";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { type RandomLlama, uniform, writeRandomLlama } from "./gguf_writer.ts";

/** tp, pp (or the layers of each stage) and tokens per block of an instance. */
type Shape = readonly [tp: number, pp: number | readonly number[], tokensPerBlock: number];

const sizesOf = ([tpSize, pp]: Shape): ParallelSizes =>
  typeof pp === "number" ? { tpSize, ppSize: pp } : { tpSize, ppSize: pp.length, pipeline: pp };

const models: Record<
  string,
  { readonly model: RandomLlama; readonly kv: "f32" | "bf16"; readonly shapes: readonly Shape[] }
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
      [2, 2, 64],
      [8, 3, 32],
    ],
  },
  "8 KV heads for 16, 7 layers": {
    model: { seed: 34, layers: 7, heads: 16, kvHeads: 8, headDim: 16, feedForward: 64 },
    kv: "f32",
    shapes: [
      [1, 1, 32],
      [2, [6, 1], 32],
      [3, 1, 16],
      [4, [2, 4, 1], 32],
      [8, 1, 64],
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
    ],
  },
};

const PROMPT = 150;
const STEPS = 3;
/** Tokens that a generation side has already, the last of them inside a block. */
const REUSED = 37;
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

  static async open(file: string, kv: "f32" | "bf16", shape: Shape): Promise<Spread> {
    const tokensPerBlock = shape[2];
    const engine = await ReferenceEngine.load(file, { kv, tokensPerBlock });
    const blocks = 64;
    const layout = layoutOf(engine.geometry);
    const instance = await KvInstance.open({
      layout,
      ...sizesOf(shape),
      pool: { memory: "host", blocks },
      socketDir: join(folder, "sockets"),
    });
    engine.attachRanks(rankPools(instance), blocks);
    return new Spread(engine, instance);
  }

  allocate(tokens: number) {
    return this.kv.pool.allocate(Math.ceil(tokens / this.kv.layout.tokensPerBlock));
  }

  /** Logits after each of `tokens`' chunks of one token, from `startPos` on. */
  async steps(tokens: readonly number[], startPos: number, blockTable: readonly BlockId[]): Promise<string[]> {
    const rows: string[] = [];
    for (const [step, token] of tokens.entries()) {
      const one = Uint32Array.of(token);
      rows.push(bits(await this.engine.logits({ tokens: one, startPos: startPos + step, blockTable })));
    }
    return rows;
  }

  /** Every vector that the ranks hold of the first `tokens` tokens: by layer, plane, head and token, as many times as it is kept. */
  *vectors(blocks: readonly BlockId[], tokens: number): Generator<readonly [key: string, bytes: Buffer]> {
    const { layout, sizes, ranks } = this.kv;
    const bytes = layout.headDim * (layout.dtype === "f32" ? 4 : 2);
    for (const [rank, { memory, blockBytes }] of ranks.entries()) {
      const { layers, heads } = shareOf(layout, placeOf(rank, sizes));
      let row = 0;
      for (let layer = layers.from; layer < layers.to; layer++) {
        for (const plane of ["k", "v"]) {
          for (let head = heads.from; head < heads.to; head++, row++) {
            for (let token = 0; token < tokens; token++) {
              const block = blocks[Math.floor(token / layout.tokensPerBlock)] as BlockId;
              const at = (row * layout.tokensPerBlock + (token % layout.tokensPerBlock)) * bytes;
              yield [`${layer}${plane}${head}.${token}`, Buffer.from(memory, block * blockBytes + at, bytes)];
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

interface Move {
  readonly context: Spread;
  readonly generation: Spread;
  readonly prompt: Uint32Array;
  readonly source: BlockHold;
  readonly target: BlockHold;
  readonly reused: number;
  readonly id: number;
}

/** Without a reused prefix all at once, after prefill; with one, chunk by chunk while it goes on. */
async function move({ context, generation, prompt, source, target, reused, id }: Move): Promise<void> {
  const tokens = prompt.length;
  const prefill = (from: number, to: number) =>
    context.engine.prefill({ tokens: prompt.slice(from, to), startPos: from, blockTable: source.ids });
  if (reused === 0) await prefill(0, tokens);
  else await generation.engine.prefill({ tokens: prompt.slice(0, reused), startPos: 0, blockTable: target.ids });
  const ready = reused === 0 ? tokens : 0;
  const sending = context.kv.send({ requestId: requestId(id), tokens, blocks: source, ready });
  source.release();
  const receiving = generation.kv.receive({ state: sending.state, blocks: target, skipTokens: reused });
  for (let from = ready; from < tokens; from += 53) {
    const to = Math.min(tokens, from + 53);
    await prefill(from, to);
    sending.ready(to);
  }
  await Promise.all([receiving.done, sending.done]);
}

describe.each(Object.entries(models))("%s", (_name, { model, kv, shapes }) => {
  it("has the KV bytes and logits bits of the unspread run in every rank that KV was moved to, from any shape", async () => {
    const file = join(folder, `${model.seed}.gguf`);
    writeRandomLlama(file, model);
    const random = uniform(model.seed);
    const token = () => Math.floor(random() * 300);
    const prompt = Uint32Array.from({ length: PROMPT }, token);
    const next = Array.from({ length: STEPS }, token);

    await using whole = await Spread.open(file, kv, [1, 1, 32]);
    using origin = whole.allocate(PROMPT + STEPS);
    await whole.engine.prefill({ tokens: prompt, startPos: 0, blockTable: origin.ids });
    const wanted = new Map<string, Buffer>();
    for (const [key, bytes] of whole.vectors(origin.ids, PROMPT)) wanted.set(key, Buffer.from(bytes));
    const wantedLogits = await whole.steps(next, PROMPT, origin.ids);

    const instances = await Promise.all(shapes.map((shape) => Spread.open(file, kv, shape)));
    try {
      let id = 0;
      for (const [from, context] of instances.entries()) {
        for (const [to, generation] of instances.entries()) {
          if (from === to) continue;
          const pair = `${shapes[from]} to ${shapes[to]}`;
          for (const reused of [0, REUSED]) {
            const source = context.allocate(PROMPT);
            const target = generation.allocate(PROMPT + STEPS);
            await move({ context, generation, prompt, source, target, reused, id: ++id });
            let seen = 0;
            for (const [key, bytes] of generation.vectors(target.ids, PROMPT)) {
              seen++;
              if (wanted.get(key)?.equals(bytes) !== true) throw new Error(`${pair}: ${key} differs`);
            }
            expect(seen).toBeGreaterThanOrEqual(wanted.size);
            expect(await generation.steps(next, PROMPT, target.ids), pair).toEqual(wantedLogits);
            target.release();
          }
        }
      }
      for (const { kv: instance } of instances) expect(instance.pool.free).toBe(instance.pool.total);
    } finally {
      await Promise.all(instances.map((instance) => instance[Symbol.asyncDispose]()));
    }
  });
});
