import type { BlockId } from "../ids.ts";
import type { NativeSampling } from "../native/engine_binding.ts";

/** How one token is chosen. */
export type Sampling = NativeSampling;

/** Shape of an engine's KV cache and model: what pairs of workers compare and pools are built from (design.md section 9). */
export interface EngineGeometry {
  readonly arch: string;
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly dtype: "f32" | "bf16";
  readonly tokensPerBlock: number;
  readonly blockBytes: number;
  /** Byte order inside a block: `[layer][k|v][head][token][headDim]`. */
  readonly layout: "HND";
  /** By layer: how many last tokens a token attends to, 0: all. Absent: all in every layer. */
  readonly windows?: readonly number[];
  readonly vocab: number;
  readonly maxSeqLen: number;
  /** Equal levels give equal bits; never compared in production, always in tests. */
  readonly vectorLevel: string;
}

/** Sampling without what changes from token to token. */
export type RequestSampling = Omit<Sampling, "index" | "history" | "promptTokens" | "banned">;

/** The likeliest token each time, without logprobs. */
export const GREEDY: RequestSampling = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0n,
  logprobs: -1,
  bias: [],
};

export interface Sample {
  readonly token: number;
  readonly logprobs?: {
    readonly logprob: number;
    readonly top: readonly { readonly token: number; readonly logprob: number }[];
  };
}

export interface DecodeRow {
  readonly token: number;
  readonly pos: number;
  readonly blockTable: readonly BlockId[];
  readonly sampling: Sampling;
}

/** Hears how far a prefill is before it is over. Engines that can't tell never call it. */
export interface LayerListener {
  /** Fewer layers are not worth a word. */
  readonly from: number;
  /** The KV of all tokens of the call is written in the first `layers` layers. Rising; what falls together is told once. */
  written(layers: number): void;
}

export interface PrefillRequest {
  readonly tokens: Uint32Array;
  readonly startPos: number;
  readonly blockTable: readonly BlockId[];
  /** Given with the last chunk: sample after its last token. */
  readonly sampling?: Sampling;
  readonly onLayer?: LayerListener;
  readonly signal?: AbortSignal;
}

/**
 * Computes KV into blocks that the transceiver's pool owns. Calls are asynchronous, run off the JS thread one at a time in the order
 * given, and end between layers when `signal` fires (KvError CANCELLED).
 */
export interface Engine {
  readonly geometry: EngineGeometry;
  prefill(request: PrefillRequest): Promise<Sample | undefined>;
  decode(rows: readonly DecodeRow[], signal?: AbortSignal): Promise<readonly Sample[]>;
  /**
   * Copies the KV of the first `tokens` tokens of one block into another one and leaves the rest of that alone: a transfer may be writing
   * it. Calls given later find it done.
   */
  copyTokens(from: BlockId, to: BlockId, tokens: number): Promise<void>;
  close(): Promise<void>;
}
