import { z } from "zod";
import type { BlockId, CapabilityToken, Epoch, RequestId, TransferId } from "../ids.ts";
import {
  type PlainEntry,
  type PlainField,
  plainArray,
  plainBytes,
  plainCount,
  plainHex,
  plainNumber,
  plainText,
  plainUint32s,
} from "./plain_wire.ts";

/**
 * How a field that this process made goes onto the wire, for those whose wire form differs. Kept beside the schemas so that writing a
 * frame costs no validation: its types have been checked by the compiler, and the reader checks every byte anyway.
 */
const writers = new Map<z.ZodType, (value: never) => unknown>();

/** Fields of what comes with each transfer, which have a short way between value and bytes. */
const plainFields = new Map<z.ZodType, PlainField>();

/** Gives `field` its short way. */
export function withPlain<Field extends z.ZodType>(field: Field, plain: PlainField): Field {
  plainFields.set(field, plain);
  return field;
}

/** @returns undefined when one of the fields has no short way: then the whole has none */
export function plainEntries(shape: Readonly<Record<string, z.ZodType>>): readonly PlainEntry[] | undefined {
  const entries: PlainEntry[] = [];
  for (const [name, field] of Object.entries(shape)) {
    const optional = field instanceof z.ZodOptional;
    const plain = plainFields.get(optional ? (field.unwrap() as z.ZodType) : field);
    if (plain === undefined) return undefined;
    entries.push({ name, field: plain, optional });
  }
  return entries;
}

/** Undefined: the value is its own wire form. */
export function writerOf(field: z.ZodType): ((value: never) => unknown) | undefined {
  if (field instanceof z.ZodOptional) return writerOf(field.unwrap() as z.ZodType);
  if (field instanceof z.ZodArray) {
    const write = writerOf(field.element as z.ZodType);
    return write === undefined ? undefined : (values: readonly never[]) => values.map(write);
  }
  return writers.get(field);
}

export const bytesField = withPlain(
  z.custom<Uint8Array>((value) => value instanceof Uint8Array, "must be a byte string"),
  plainBytes,
);

/** `bytes` raw bytes on the wire, twice as many lower-case hex digits in TypeScript: 64-bit numbers never become doubles. */
const hexField = <Hex extends string>(bytes: number, repeats = false) => {
  const encode = (hex: Hex): Uint8Array => Buffer.from(hex, "hex");
  const decode = (raw: Uint8Array): Hex => Buffer.from(raw.buffer, raw.byteOffset, raw.length).toString("hex") as Hex;
  const field = z.codec(
    bytesField.refine((raw) => raw.length === bytes, `must be ${bytes} bytes`),
    z.custom<Hex>((value) => typeof value === "string" && value.length === 2 * bytes),
    { decode, encode },
  );
  writers.set(field, encode);
  plainFields.set(field, plainHex(bytes, repeats));
  return field;
};

export const epochField = hexField<Epoch>(8, true);
export const requestIdField = hexField<RequestId>(8);
export const tokenField = hexField<CapabilityToken>(16);
/** 16 random bytes, then the attempt as a big-endian uint32. */
export const transferIdField = hexField<TransferId>(20);
export const digestField = hexField<string>(16);
export const nonceField = bytesField.refine((raw) => raw.length === 32, "must be 32 bytes");
/** HMAC-SHA256, or empty where the way itself proves the peer (unix socket). */
export const proofField = bytesField.refine((raw) => raw.length === 32 || raw.length === 0, "must be 0 or 32 bytes");

const encodeBlocks = (ids: readonly BlockId[]): Uint8Array => {
  const raw = new Uint8Array(4 * ids.length);
  const view = new DataView(raw.buffer);
  for (const [index, id] of ids.entries()) view.setUint32(4 * index, id, true);
  return raw;
};

const decodeBlocks = (raw: Uint8Array): readonly BlockId[] => {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  return Array.from({ length: raw.length / 4 }, (_, index) => view.getUint32(4 * index, true) as BlockId);
};

/** Block ids as little-endian uint32s in one byte string: a table of 200,000 blocks stays below the frame limit. */
export const blocksField = z.codec(
  bytesField.refine((raw) => raw.length % 4 === 0, "must be whole uint32s"),
  z.custom<readonly BlockId[]>(Array.isArray),
  {
    decode: decodeBlocks,
    encode: encodeBlocks,
  },
);
writers.set(blocksField, encodeBlocks);
plainFields.set(blocksField, plainUint32s);

/** Whole numbers that stay exact as doubles. */
export const countField = withPlain(z.int().min(0), plainCount);
const MILLIS_LIMIT = 8_640_000_000;
/** A duration that a peer claims; at most 100 days, so that no sum of times leaves the exact range. */
export const millisField = withPlain(z.number().min(0).max(MILLIS_LIMIT), plainNumber(MILLIS_LIMIT));
const stageLayers: PlainField = {
  write: plainCount.write,
  read: (from) => {
    const layers = from.count();
    return layers !== undefined && layers >= 1 && layers <= 4096 ? layers : undefined;
  },
};
const STAGES_LIMIT = 1024;
export const plainPipeline = plainArray(stageLayers, STAGES_LIMIT);
/** Layers of each pipeline stage. */
export const pipelineField = withPlain(z.array(z.int().min(1).max(4096)).max(STAGES_LIMIT), plainPipeline);
const TEXT_LIMIT = 1024;
export const textField = withPlain(z.string().max(TEXT_LIMIT), plainText(TEXT_LIMIT));
