import { KvError } from "../errors.ts";
import type { BlockId } from "../ids.ts";
import type { VectorLevel } from "../native/binding.ts";
import type {
  GgufValue,
  NativeDecodeRow,
  NativeEngine,
  NativeModelOptions,
  NativeRankPool,
  NativeSample,
} from "../native/engine_binding.ts";
import { loadNative } from "../native/loader.ts";
import type { NativePoolSpan } from "../native/plane_binding.ts";
import type { DecodeRow, Engine, EngineGeometry, PrefillRequest, Sample, Sampling } from "./engine.ts";
import { wholePool } from "./engine_pools.ts";

export interface ReferenceEngineOptions {
  /** Threads that compute, the engine's own included. Default 1: a worker shares its machine with the other side of its pair. */
  readonly threads?: number;
  /** Element type of the weight matrices in memory. `auto`: f32 below 100 million parameters, else bf16. */
  readonly weights?: "auto" | "f32" | "bf16";
  /** Element type of the KV cache, same rule. */
  readonly kv?: "auto" | "f32" | "bf16";
  readonly tokensPerBlock?: number;
  /** By layer: how many last tokens a token attends to, itself included; 0: all. Default: all in every layer. */
  readonly windows?: readonly number[];
}

/**
 * The addon's own Llama engine on the CPU. Bits of its results do not depend on chunking, batch, threads or block placement
 * (reference-engine.md section 3), so a transferred cache can be tested for equality.
 */
export class ReferenceEngine implements Engine {
  readonly geometry: EngineGeometry;
  readonly weightsDtype: "f32" | "bf16";
  readonly parameters: number;
  readonly #file: string;
  readonly #native: NativeEngine;
  #calls = 0;
  #closing: Promise<void> | undefined;

  private constructor(
    file: string,
    native: NativeEngine,
    { windows, vectorLevel }: { readonly windows: readonly number[] | undefined; readonly vectorLevel: VectorLevel },
  ) {
    const { arch, layers, kvHeads, headDim, kvDtype, tokensPerBlock, blockBytes, vocab, maxSeqLen } = native.geometry;
    this.geometry = {
      arch,
      layers,
      kvHeads,
      headDim,
      dtype: kvDtype,
      tokensPerBlock,
      blockBytes,
      layout: "HND",
      ...(windows === undefined ? {} : { windows }),
      vocab,
      maxSeqLen,
      vectorLevel,
    };
    this.weightsDtype = native.geometry.weightsDtype;
    this.parameters = native.geometry.parameters;
    this.#file = file;
    this.#native = native;
  }

  /**
   * Reads a GGUF file off the JS thread and keeps its weights in memory; the file is not needed afterwards.
   * @throws KvError MODEL_UNREADABLE, MODEL_INVALID (broken file, place named), MODEL_UNSUPPORTED (sound, but a feature we lack, named)
   */
  static async load(file: string, options: ReferenceEngineOptions = {}): Promise<ReferenceEngine> {
    const binding = loadNative();
    const settings: NativeModelOptions = {
      threads: options.threads ?? 1,
      weights: options.weights ?? "auto",
      kv: options.kv ?? "auto",
      tokensPerBlock: options.tokensPerBlock ?? 32,
      ...(options.windows === undefined ? {} : { windows: Uint32Array.from(options.windows) }),
    };
    const native = await binding.loadModel(file, settings).catch((error: unknown) => {
      throw engineError(error, file);
    });
    return new ReferenceEngine(file, native, { windows: options.windows, vectorLevel: binding.vectorLevel });
  }

  /** Every key of the file's header, the tokenizer's arrays and chat template included. Built once, at the first use. */
  get metadata(): Readonly<Record<string, GgufValue>> {
    return this.#native.metadata;
  }

  /** The pool that block tables index, holding all of the KV. Until then every call fails. @throws KvError INVALID_ARGUMENT, as `attachRanks` */
  attach(span: NativePoolSpan, blocks: number): void {
    this.attachRanks(wholePool(span, this.geometry), blocks);
  }

  /**
   * The pools of all ranks; a block id names a block in each. What lies in several (more ranks than KV heads) is written to each.
   * @throws KvError INVALID_ARGUMENT when the blocks of one have another size, or a head is in none
   */
  attachRanks(pools: readonly NativeRankPool[], blocks: number): void {
    try {
      this.#native.attachPools(pools, blocks);
    } catch (error) {
      throw engineError(error, this.#file);
    }
  }

  async prefill(request: PrefillRequest): Promise<Sample | undefined> {
    const { tokens, startPos, blockTable, sampling, onLayer, signal } = request;
    const written = onLayer === undefined ? null : (layers: number) => onLayer.written(layers);
    const from = onLayer?.from ?? 1;
    const sample = await this.#call(signal, (call) =>
      this.#native.prefill(call, tokens, startPos, blockIds(blockTable), sampling ?? null, written, from),
    );
    return sample === null ? undefined : sampleOf(sample, sampling);
  }

  async decode(rows: readonly DecodeRow[], signal?: AbortSignal): Promise<readonly Sample[]> {
    const nativeRows: NativeDecodeRow[] = rows.map((row) => ({ ...row, blockTable: blockIds(row.blockTable) }));
    const samples = await this.#call(signal, (call) => this.#native.decode(call, nativeRows));
    return samples.map((sample, index) => sampleOf(sample, rows[index]?.sampling));
  }

  async copyTokens(from: BlockId, to: BlockId, tokens: number): Promise<void> {
    if (this.#closing !== undefined) throw new KvError("CLOSED", { what: "the engine" });
    try {
      await this.#native.copyTokens(from, to, tokens);
    } catch (error) {
      throw engineError(error, this.#file);
    }
  }

  /** As `prefill`, but answers the logits after the last token, `vocab` of them. For tests of bit equality. */
  async logits(request: Omit<PrefillRequest, "sampling">): Promise<Float32Array> {
    const { tokens, startPos, blockTable, signal } = request;
    return this.#call(signal, (call) => this.#native.logits(call, tokens, startPos, blockIds(blockTable)));
  }

  /** Ends the running call between two layers, fails those that wait with CLOSED, joins the threads. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#native.close();
    return this.#closing;
  }

  async #call<T>(signal: AbortSignal | undefined, start: (call: number) => Promise<T>): Promise<T> {
    if (this.#closing !== undefined) throw new KvError("CLOSED", { what: "the engine" });
    if (signal?.aborted) throw cancelled();
    const call = ++this.#calls;
    const onAbort = () => this.#native.cancel(call);
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      return await start(call);
    } catch (error) {
      throw engineError(error, this.#file);
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }
}

const blockIds = (table: readonly BlockId[]): Uint32Array => Uint32Array.from(table);

const cancelled = (): KvError => new KvError("CANCELLED", { transfer: "(engine call)", why: "its signal fired" });

const sampleOf = (native: NativeSample, sampling: Sampling | undefined): Sample => {
  if (sampling === undefined || sampling.logprobs < 0) return { token: native.token };
  const top = Array.from(native.topTokens, (token, index) => ({ token, logprob: native.topLogprobs[index] ?? 0 }));
  // In the precision of the alternatives: the sampled token may be among them, and its two figures are one.
  return { token: native.token, logprobs: { logprob: Math.fround(native.logprob), top } };
};

/** The addon rejects with `{ code, message }`; its codes are few and belong to this file. */
const engineError = (error: unknown, file: string): KvError => {
  if (error instanceof TypeError) {
    return new KvError("INVALID_ARGUMENT", { what: "an argument of the engine", why: error.message }, { cause: error });
  }
  const { code, message } = error as { readonly code?: unknown; readonly message?: unknown };
  const why = String(message ?? error);
  switch (code) {
    case "CANCELLED":
      return cancelled();
    case "CLOSED":
      return new KvError("CLOSED", { what: "the engine" });
    case "UNREADABLE":
      return new KvError("MODEL_UNREADABLE", { file, why });
    case "INVALID":
      return new KvError("MODEL_INVALID", { file, why });
    case "UNSUPPORTED":
      return new KvError("MODEL_UNSUPPORTED", { file, why });
    case "ARGUMENT":
      return new KvError("INVALID_ARGUMENT", { what: "an argument of the engine", why });
    default:
      return new KvError("INTERNAL", { where: "the engine", why }, { cause: error });
  }
};
