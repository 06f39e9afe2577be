import { writeFileSync } from "node:fs";
import type { GgufValue } from "../../../src/native/engine_binding.ts";

/** Element encodings of a GGUF tensor that the engine reads: id, values and bytes of one block (ggml-common.h of llama.cpp). */
const tensorTypes = {
  F32: { id: 0, values: 1, bytes: 4 },
  F16: { id: 1, values: 1, bytes: 2 },
  Q4_0: { id: 2, values: 32, bytes: 18 },
  Q4_1: { id: 3, values: 32, bytes: 20 },
  Q8_0: { id: 8, values: 32, bytes: 34 },
  Q6_K: { id: 14, values: 256, bytes: 210 },
  BF16: { id: 30, values: 1, bytes: 2 },
} as const;
export type TensorType = keyof typeof tensorTypes;

export type MetadataValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly text: string }
  | { readonly bool: boolean }
  | { readonly u64: bigint }
  | { readonly texts: readonly string[] }
  | { readonly i32s: readonly number[] };

export interface TensorToWrite {
  readonly name: string;
  /** Innermost first: `[columns, rows]`. */
  readonly shape: readonly number[];
  readonly type: TensorType | number;
  readonly data: Uint8Array;
}

const ALIGNMENT = 32;

/** GGUF version 3, little-endian, tensors in the order given. */
export function encodeGguf(
  metadata: Readonly<Record<string, MetadataValue>>,
  tensors: readonly TensorToWrite[],
): Uint8Array {
  const parts: Uint8Array[] = [];
  const u32 = (value: number) => parts.push(new Uint8Array(Uint32Array.of(value).buffer));
  const u64 = (value: number | bigint) => parts.push(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  const text = (value: string) => {
    const bytes = new TextEncoder().encode(value);
    u64(bytes.length);
    parts.push(bytes);
  };
  parts.push(new TextEncoder().encode("GGUF"));
  u32(3);
  u64(tensors.length);
  u64(Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    text(key);
    if ("u32" in value) {
      u32(4);
      u32(value.u32);
    } else if ("f32" in value) {
      u32(6);
      parts.push(new Uint8Array(Float32Array.of(value.f32).buffer));
    } else if ("bool" in value) {
      u32(7);
      parts.push(Uint8Array.of(value.bool ? 1 : 0));
    } else if ("u64" in value) {
      u32(10);
      u64(value.u64);
    } else if ("text" in value) {
      u32(8);
      text(value.text);
    } else if ("i32s" in value) {
      u32(9);
      u32(5);
      u64(value.i32s.length);
      parts.push(new Uint8Array(Int32Array.from(value.i32s).buffer));
    } else {
      u32(9);
      u32(8);
      u64(value.texts.length);
      for (const entry of value.texts) text(entry);
    }
  }
  let offset = 0;
  for (const tensor of tensors) {
    text(tensor.name);
    u32(tensor.shape.length);
    for (const extent of tensor.shape) u64(extent);
    u32(typeof tensor.type === "number" ? tensor.type : tensorTypes[tensor.type].id);
    u64(offset);
    offset += aligned(tensor.data.length);
  }
  const header = parts.reduce((sum, part) => sum + part.length, 0);
  parts.push(new Uint8Array(aligned(header) - header));
  for (const { data } of tensors) parts.push(data, new Uint8Array(aligned(data.length) - data.length));
  return new Uint8Array(Buffer.concat(parts));
}

const aligned = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

export interface RandomLlama {
  readonly seed: number;
  readonly layers?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly feedForward?: number;
  readonly vocab?: number;
  readonly context?: number;
  /** Of every matrix; norms are F32. */
  readonly type?: TensorType;
  /** No `output.weight`: the embeddings are the output matrix too. */
  readonly tied?: boolean;
}

/** A Llama with random weights: its logits are flat, so the smallest numeric change flips a greedy choice. */
export function randomLlama(options: RandomLlama): {
  metadata: Record<string, MetadataValue>;
  tensors: TensorToWrite[];
} {
  const { seed, layers = 2, heads = 4, kvHeads = 2, headDim = 32, feedForward = 256, vocab = 300 } = options;
  const { context = 512, type = "F32", tied = true } = options;
  const width = heads * headDim;
  const random = uniform(seed);
  const tensors: TensorToWrite[] = [];
  const matrix = (name: string, rows: number, columns: number) => {
    const data = randomValues(type, rows * columns, 1 / Math.sqrt(columns), random);
    tensors.push({ name: `${name}.weight`, shape: [columns, rows], type, data });
  };
  const norm = (name: string) => {
    const values = Float32Array.from({ length: width }, () => 0.5 + random());
    tensors.push({ name: `${name}.weight`, shape: [width], type: "F32", data: new Uint8Array(values.buffer) });
  };
  matrix("token_embd", vocab, width);
  for (let layer = 0; layer < layers; layer++) {
    norm(`blk.${layer}.attn_norm`);
    matrix(`blk.${layer}.attn_q`, width, width);
    matrix(`blk.${layer}.attn_k`, kvHeads * headDim, width);
    matrix(`blk.${layer}.attn_v`, kvHeads * headDim, width);
    matrix(`blk.${layer}.attn_output`, width, width);
    norm(`blk.${layer}.ffn_norm`);
    matrix(`blk.${layer}.ffn_gate`, feedForward, width);
    matrix(`blk.${layer}.ffn_up`, feedForward, width);
    matrix(`blk.${layer}.ffn_down`, width, feedForward);
  }
  norm("output_norm");
  if (!tied) matrix("output", vocab, width);
  const metadata: Record<string, MetadataValue> = {
    "general.architecture": { text: "llama" },
    "general.name": { text: `random ${seed}` },
    "llama.block_count": { u32: layers },
    "llama.embedding_length": { u32: width },
    "llama.attention.head_count": { u32: heads },
    "llama.attention.head_count_kv": { u32: kvHeads },
    "llama.feed_forward_length": { u32: feedForward },
    "llama.context_length": { u32: context },
    "llama.attention.layer_norm_rms_epsilon": { f32: 1e-5 },
    "llama.rope.freq_base": { f32: 10_000 },
  };
  return { metadata, tensors };
}

/** @param more metadata besides, a tokenizer's for example */
export function writeRandomLlama(
  file: string,
  options: RandomLlama,
  more: Readonly<Record<string, MetadataValue>> = {},
): void {
  const { metadata, tensors } = randomLlama(options);
  writeFileSync(file, encodeGguf({ ...metadata, ...more }, tensors));
}

/** The tokenizer of a model that was read, for a random model with its vocabulary. */
export function tokenizerOf(metadata: Readonly<Record<string, GgufValue>>): Record<string, MetadataValue> {
  const values = Object.entries(metadata).filter(([key]) => key.startsWith("tokenizer."));
  return Object.fromEntries(values.map(([key, value]) => [key, written(value)]));
}

function written(value: GgufValue): MetadataValue {
  if (typeof value === "string") return { text: value };
  if (typeof value === "boolean") return { bool: value };
  if (typeof value === "number") return { u32: value };
  if (typeof value === "bigint") return { u64: value };
  return typeof value[0] === "string" ? { texts: value as string[] } : { i32s: value as number[] };
}

/** mulberry32: seeded, in [0, 1). */
export function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `count` values of about `deviation`, encoded. Quantised types get random blocks whose scale gives that deviation. */
function randomValues(type: TensorType, count: number, deviation: number, random: () => number): Uint8Array {
  const { values, bytes } = tensorTypes[type];
  if (count % values !== 0) throw new Error(`${count} values are not whole blocks of ${type}`);
  const data = new Uint8Array((count / values) * bytes);
  const view = new DataView(data.buffer);
  const spread = deviation * Math.sqrt(12);
  for (let at = 0; at < data.length; at += bytes) {
    if (type === "F32") view.setFloat32(at, (random() - 0.5) * spread, true);
    else if (type === "F16") view.setUint16(at, halfBits((random() - 0.5) * spread), true);
    else if (type === "BF16") view.setUint16(at, bf16Bits((random() - 0.5) * spread), true);
    else {
      for (let i = 0; i < bytes; i++) data[at + i] = Math.floor(random() * 256);
      const jitter = 0.5 + random();
      if (type === "Q8_0") view.setUint16(at, halfBits((jitter * spread) / 256), true);
      if (type === "Q4_0") view.setUint16(at, halfBits((jitter * spread) / 16), true);
      if (type === "Q4_1") {
        view.setUint16(at, halfBits((jitter * spread) / 16), true);
        view.setUint16(at + 2, halfBits((-jitter * spread) / 2), true);
      }
      if (type === "Q6_K") view.setUint16(at + 208, halfBits((jitter * spread) / (64 * 128)), true);
    }
  }
  return data;
}

function bf16Bits(value: number): number {
  return (new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0) >>> 16;
}

/** Half of a finite number below 65504, rounded toward zero. */
function halfBits(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0;
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 255) - 112;
  if (exponent <= 0) return sign | (exponent < -10 ? 0 : ((bits & 0x7fffff) | 0x800000) >>> (14 - exponent));
  return sign | (exponent << 10) | ((bits >>> 13) & 0x3ff);
}
