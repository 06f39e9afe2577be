import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";
import type { BlockOrder } from "../../../src/kv/placement.ts";
import type { BlockHold } from "../../../src/kv/pool.ts";
import type { ParallelSizes } from "../../../src/kv/ranks.ts";
import { type InstanceOptions, KvInstance } from "../../../src/transceiver/instance.ts";
import type { TransceiverHooks } from "../../../src/transceiver/transceiver_parts.ts";

/** tp, pp (or the layers of each stage), tokens per block and order inside a block of an instance, and its number under attention DP. */
export type Shape = readonly [
  tp: number,
  pp: number | readonly number[],
  tokensPerBlock: number,
  order?: BlockOrder,
  dpRank?: number,
];

export const sizesOf = ([tpSize, pp, , , dpRank]: Shape): ParallelSizes => ({
  tpSize,
  ...(typeof pp === "number" ? { ppSize: pp } : { ppSize: pp.length, pipeline: pp }),
  dpRank,
});

/** A socket directory for the instances of one test file, so that they find each other. */
export function socketDirOf(file: string): string {
  const folder = mkdtempSync(join(tmpdir(), `kvt-${file}-`));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export const BLOCKS = 16;
export const LAYERS = 5;

/** All ranks of an instance in this process. */
export function openShape(
  shape: Shape,
  options: Partial<InstanceOptions> & Pick<InstanceOptions, "socketDir">,
  { kvHeads = 4, ...hooks }: TransceiverHooks & { readonly kvHeads?: number } = {},
): Promise<KvInstance> {
  const [, , tokensPerBlock] = shape;
  const layout = { layers: LAYERS, kvHeads, headDim: 16, dtype: "f32", tokensPerBlock, attention: "gqa" } as const;
  const pool = { memory: "host", blocks: BLOCKS } as const;
  return KvInstance.open({ layout, ...sizesOf(shape), pool, ...options }, hooks);
}

export const allocateFor = ({ pool, layout }: KvInstance, tokens: number): BlockHold =>
  pool.allocate(Math.ceil(tokens / layout.tokensPerBlock));
