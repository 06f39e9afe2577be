import type { NativeGroup, NativePoolSpan } from "./plane_binding.ts";

export interface NativeModelOptions {
  readonly threads: number;
  readonly weights: "auto" | "f32" | "bf16";
  readonly kv: "auto" | "f32" | "bf16";
  readonly tokensPerBlock: number;
  /** By layer: how many last tokens a token attends to, itself included; 0: all. Absent: all in every layer. */
  readonly windows?: Uint32Array;
}

export type GgufValue = number | bigint | string | boolean | readonly GgufValue[];

export interface NativeEngine {
  readonly geometry: {
    readonly arch: string;
    readonly layers: number;
    readonly heads: number;
    readonly kvHeads: number;
    readonly headDim: number;
    readonly kvDtype: "f32" | "bf16";
    readonly weightsDtype: "f32" | "bf16";
    readonly tokensPerBlock: number;
    readonly blockBytes: number;
    readonly vocab: number;
    readonly maxSeqLen: number;
    readonly parameters: number;
  };
  /** Every key of the file, tokenizer arrays included. */
  readonly metadata: Readonly<Record<string, GgufValue>>;
  /** The pools that hold the model's KV together; a block id names a block in each. Throws when they don't, or not all of it. */
  attachPools(pools: readonly NativeRankPool[], blocks: number): void;
  /**
   * Evaluates `tokens` at positions startPos.. and samples after the last one when `sampling` is given. Rejects with `{ code: "CANCELLED" }`
   * between layers after cancel(call). `onLayers` hears, while the call runs, that the KV of all its tokens is written in so many first layers, rising
   * from `fromLayers` on; what falls together, or into the end of the call, is told once or not at all.
   */
  prefill(
    call: number,
    tokens: Uint32Array,
    startPos: number,
    blockTable: Uint32Array,
    sampling: NativeSampling | null,
    onLayers: ((layers: number) => void) | null,
    fromLayers: number,
  ): Promise<NativeSample | null>;
  /** One token for each row; rows may belong to different sequences. */
  decode(call: number, rows: readonly NativeDecodeRow[]): Promise<readonly NativeSample[]>;
  /** Logits of the last evaluated token instead of a sample: for tests of bit equality. Float32, vocab entries. */
  logits(call: number, tokens: Uint32Array, startPos: number, blockTable: Uint32Array): Promise<Float32Array>;
  /** The KV of the first `tokens` tokens of block `from` is in block `to` as well when this resolves; the rest of that block is not touched. */
  copyTokens(from: number, to: number, tokens: number): Promise<void>;
  cancel(call: number): void;
  close(): Promise<void>;
}

/** Memory of one rank, and a group of keys and values (two planes) that lies there. */
export interface NativeRankPool {
  readonly span: NativePoolSpan;
  readonly places: NativeGroup;
}

export interface NativeDecodeRow {
  readonly token: number;
  readonly pos: number;
  readonly blockTable: Uint32Array;
  readonly sampling: NativeSampling;
}

/** Randomness is counter-based on (seed, index): the same request gives the same text wherever it runs. */
export interface NativeSampling {
  /** 0 = greedy. */
  readonly temperature: number;
  readonly topP: number;
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly seed: bigint;
  /** Index of the token to sample in the output, 0 for the first. */
  readonly index: number;
  /** Tokens the penalties look at: prompt ids first, then output ids. */
  readonly history: Uint32Array;
  /** Where the output starts in `history` (presence and frequency penalties count output only). */
  readonly promptTokens: number;
  /** Number of alternatives wanted, 0..20; -1 = no logprobs at all. */
  readonly logprobs: number;
  readonly bias: readonly { readonly token: number; readonly bias: number }[];
  /** Ids that may not be sampled (min_tokens, ignore_eos). */
  readonly banned: Uint32Array;
}

export interface NativeSample {
  readonly token: number;
  /** Natural log of the sampled token's probability in the model's own distribution (before temperature and filters); NaN without logprobs. */
  readonly logprob: number;
  readonly topTokens: Uint32Array;
  readonly topLogprobs: Float32Array;
}
