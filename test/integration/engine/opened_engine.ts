import { readFileSync } from "node:fs";
import type { BlockId } from "../../../src/ids.ts";
import { nativeLayoutOf } from "../../../src/kv/placement.ts";
import { loadNative } from "../../../src/native/loader.ts";
import type { NativeDataPlane } from "../../../src/native/plane_binding.ts";
import { GREEDY, type Sample, type Sampling } from "../../../src/worker/engine.ts";
import { layoutOf } from "../../../src/worker/engine_pools.ts";
import { ReferenceEngine, type ReferenceEngineOptions } from "../../../src/worker/reference_engine.ts";

export const TINY = "models/tiny.gguf";

export interface Golden {
  readonly name: string;
  readonly ids: readonly number[];
  readonly output_ids: readonly number[];
}

export const goldens = (): readonly Golden[] =>
  (JSON.parse(readFileSync("models/golden.json", "utf8")) as { prompts: readonly Golden[] }).prompts;

/** An engine over a pool of the real data plane. */
export class OpenedEngine implements AsyncDisposable {
  readonly engine: ReferenceEngine;
  readonly plane: NativeDataPlane;
  readonly blocks: number;

  private constructor(engine: ReferenceEngine, plane: NativeDataPlane, blocks: number) {
    this.engine = engine;
    this.plane = plane;
    this.blocks = blocks;
  }

  static async open(file: string, options: ReferenceEngineOptions & { blocks?: number } = {}): Promise<OpenedEngine> {
    const { blocks = 64, ...engineOptions } = options;
    const engine = await ReferenceEngine.load(file, engineOptions);
    const place = { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 };
    const plane = await loadNative().openDataPlane(
      {
        layout: nativeLayoutOf(layoutOf(engine.geometry), place, {}),
        blocks,
        epoch: "00000000000000aa",
        check: false,
      },
      () => {},
    );
    engine.attach(plane.span, blocks);
    return new OpenedEngine(engine, plane, blocks);
  }

  /** Block ids for `tokens` tokens: `first`, `first + 1`, ... */
  table(tokens: number, first = 0): BlockId[] {
    const count = Math.ceil(tokens / this.engine.geometry.tokensPerBlock);
    return Array.from({ length: count }, (_, index) => (first + index) as BlockId);
  }

  /** Bytes of one block as they lie in the pool. */
  block(id: BlockId): Uint8Array {
    const { blockBytes } = this.engine.geometry;
    return new Uint8Array(this.plane.memory, id * blockBytes, blockBytes);
  }

  /** Prefills in chunks of `chunk` tokens and decodes alone until `count` tokens are there. */
  async generate(
    prompt: readonly number[],
    count: number,
    options: { chunk?: number; blockTable?: readonly BlockId[]; sampling?: Partial<Sampling> } = {},
  ): Promise<Sample[]> {
    const { chunk = prompt.length, blockTable = this.table(prompt.length + count) } = options;
    const output: Sample[] = [];
    const next = () => sampling({ ...options.sampling, index: output.length, ...historyOf(prompt, output) });
    for (let start = 0; start < prompt.length; start += chunk) {
      const tokens = Uint32Array.from(prompt.slice(start, start + chunk));
      const last = start + chunk >= prompt.length;
      const sample = await this.engine.prefill({
        tokens,
        startPos: start,
        blockTable,
        ...(last ? { sampling: next() } : {}),
      });
      if (sample !== undefined) output.push(sample);
    }
    while (output.length < count) {
      const token = output.at(-1)?.token ?? 0;
      const pos = prompt.length + output.length - 1;
      output.push(...(await this.engine.decode([{ token, pos, blockTable, sampling: next() }])));
    }
    return output;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.close();
    await this.plane.close();
  }
}

const historyOf = (prompt: readonly number[], output: readonly Sample[]) => ({
  history: Uint32Array.from([...prompt, ...output.map(({ token }) => token)]),
  promptTokens: prompt.length,
});

/** Greedy without logprobs, changed by `given`. */
export const sampling = (given: Partial<Sampling> = {}): Sampling => ({
  ...GREEDY,
  index: 0,
  history: new Uint32Array(),
  promptTokens: 0,
  banned: new Uint32Array(),
  ...given,
});

export const tokensOf = (samples: readonly Sample[]): number[] => samples.map(({ token }) => token);
