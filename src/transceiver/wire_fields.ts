import { z } from "zod";
import type { BlockId, CapabilityToken, Epoch, RequestId, TransferId } from "../ids.ts";

/**
 * How a field that this process made goes onto the wire, for those whose wire form differs. Kept beside the schemas so that writing a
 * frame costs no validation: its types have been checked by the compiler, and the reader checks every byte anyway.
 */
const writers = new Map<z.ZodType, (value: never) => unknown>();

/**
 * The short way in, for the fields of frames that come with each transfer: the same value that the schema gives, or undefined where the
 * value is not plainly valid. Then the schema itself decides, and finds the words for what is wrong.
 */
const readers = new Map<z.ZodType, (value: unknown) => unknown>();

/** Reads `value[name]` for each field of an object schema that has only such fields. @returns undefined as its readers do */
export function readerOfFields<Shape extends Readonly<Record<string, z.ZodType>>>(
  shape: Shape,
): (value: Readonly<Record<string, unknown>>) => { [Name in keyof Shape]: z.output<Shape[Name]> } | undefined {
  const all = Object.entries(shape).map(([name, field]) => {
    const read = readers.get(field) ?? ((value: unknown) => field.safeParse(value).data);
    return [name, read] as const;
  });
  return (value) => {
    const fields: Record<string, unknown> = {};
    for (const [name, read] of all) {
      const field = read(value[name]);
      if (field === undefined) return undefined;
      fields[name] = field;
    }
    return fields as { [Name in keyof Shape]: z.output<Shape[Name]> };
  };
}

export const readerOf = (field: z.ZodType): ((value: unknown) => unknown) | undefined => readers.get(field);

/** Undefined: the value is its own wire form. */
export function writerOf(field: z.ZodType): ((value: never) => unknown) | undefined {
  if (field instanceof z.ZodOptional) return writerOf(field.unwrap() as z.ZodType);
  if (field instanceof z.ZodArray) {
    const write = writerOf(field.element as z.ZodType);
    return write === undefined ? undefined : (values: readonly never[]) => values.map(write);
  }
  return writers.get(field);
}

export const bytesField = z.custom<Uint8Array>((value) => value instanceof Uint8Array, "must be a byte string");

/** `bytes` raw bytes on the wire, twice as many lower-case hex digits in TypeScript: 64-bit numbers never become doubles. */
const hexField = <Hex extends string>(bytes: number) => {
  const encode = (hex: Hex): Uint8Array => Buffer.from(hex, "hex");
  const decode = (raw: Uint8Array): Hex => Buffer.from(raw.buffer, raw.byteOffset, raw.length).toString("hex") as Hex;
  const field = z.codec(
    bytesField.refine((raw) => raw.length === bytes, `must be ${bytes} bytes`),
    z.custom<Hex>((value) => typeof value === "string" && value.length === 2 * bytes),
    { decode, encode },
  );
  writers.set(field, encode);
  readers.set(field, (raw) => (raw instanceof Uint8Array && raw.length === bytes ? decode(raw) : undefined));
  return field;
};

export const epochField = hexField<Epoch>(8);
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
readers.set(blocksField, (raw) => (raw instanceof Uint8Array && raw.length % 4 === 0 ? decodeBlocks(raw) : undefined));

/** Whole numbers that stay exact as doubles. */
export const countField = z.int().min(0);
readers.set(countField, (value) => (Number.isSafeInteger(value) && (value as number) >= 0 ? value : undefined));
/** A duration that a peer claims; at most 100 days, so that no sum of times leaves the exact range. */
export const millisField = z.number().min(0).max(8_640_000_000);
export const textField = z.string().max(1024);
readers.set(textField, (value) => (typeof value === "string" && value.length <= 1024 ? value : undefined));
