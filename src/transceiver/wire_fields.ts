import { z } from "zod";
import type { BlockId, CapabilityToken, Epoch, RequestId, TransferId } from "../ids.ts";

export const bytesField = z.custom<Uint8Array>((value) => value instanceof Uint8Array, "must be a byte string");

/** `bytes` raw bytes on the wire, twice as many lower-case hex digits in TypeScript: 64-bit numbers never become doubles. */
const hexField = <Hex extends string>(bytes: number) =>
  z.codec(
    bytesField.refine((raw) => raw.length === bytes, `must be ${bytes} bytes`),
    z.custom<Hex>((value) => typeof value === "string" && value.length === 2 * bytes),
    {
      decode: (raw) => Buffer.from(raw.buffer, raw.byteOffset, raw.length).toString("hex") as Hex,
      encode: (hex) => Buffer.from(hex, "hex"),
    },
  );

export const epochField = hexField<Epoch>(8);
export const requestIdField = hexField<RequestId>(8);
export const tokenField = hexField<CapabilityToken>(16);
/** 16 random bytes, then the attempt as a big-endian uint32. */
export const transferIdField = hexField<TransferId>(20);
export const digestField = hexField<string>(16);
export const nonceField = bytesField.refine((raw) => raw.length === 32, "must be 32 bytes");
/** HMAC-SHA256, or empty where the way itself proves the peer (unix socket). */
export const proofField = bytesField.refine((raw) => raw.length === 32 || raw.length === 0, "must be 0 or 32 bytes");

/** Block ids as little-endian uint32s in one byte string: a table of 200,000 blocks stays below the frame limit. */
export const blocksField = z.codec(
  bytesField.refine((raw) => raw.length % 4 === 0, "must be whole uint32s"),
  z.custom<readonly BlockId[]>(Array.isArray),
  {
    decode: (raw) => {
      const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
      return Array.from({ length: raw.length / 4 }, (_, index) => view.getUint32(4 * index, true) as BlockId);
    },
    encode: (ids) => {
      const raw = new Uint8Array(4 * ids.length);
      const view = new DataView(raw.buffer);
      for (const [index, id] of ids.entries()) view.setUint32(4 * index, id, true);
      return raw;
    },
  },
);

/** Whole numbers that stay exact as doubles. */
export const countField = z.int().min(0);
/** A duration that a peer claims; at most 100 days, so that no sum of times leaves the exact range. */
export const millisField = z.number().min(0).max(8_640_000_000);
export const textField = z.string().max(1024);
