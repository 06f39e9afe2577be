import { randomFillSync } from "node:crypto";
import { KvError } from "./errors.ts";

declare const brand: unique symbol;
type Brand<T, Name extends string> = T & { readonly [brand]: Name };

/** Index of a block in one rank's pool, uint32. */
export type BlockId = Brand<number, "BlockId">;
/** A request's 64-bit id as 16 lower-case hex digits; JSON carries it as a bare integer (`ctx_request_id`). */
export type RequestId = Brand<string, "RequestId">;
/** 64 random bits of one transceiver start, 16 hex digits. Makes messages of an earlier start harmless. */
export type Epoch = Brand<string, "Epoch">;
/** 128 random bits plus a 32-bit attempt number, 40 hex digits; a retry is a new attempt (lease-model.md section 1). */
export type TransferId = Brand<string, "TransferId">;
/** 128 random bits: the right to fetch or cancel one offer, 32 hex digits. */
export type CapabilityToken = Brand<string, "CapabilityToken">;

const U64_LIMIT = 1n << 64n;

/** @throws KvError INVALID_ARGUMENT when `value` is no unsigned 64-bit integer */
export function requestId(value: bigint | number): RequestId {
  if (typeof value === "number" && !Number.isSafeInteger(value)) {
    throw new KvError("INVALID_ARGUMENT", { what: `request id ${value}`, why: "give 64-bit ids as bigint" });
  }
  const big = BigInt(value);
  if (big < 0n || big >= U64_LIMIT) {
    throw new KvError("INVALID_ARGUMENT", { what: `request id ${value}`, why: "it must be in 0 .. 2^64-1" });
  }
  return big.toString(16).padStart(16, "0") as RequestId;
}

export const requestIdToBigInt = (id: RequestId): bigint => BigInt(`0x${id}`);

/** Random bytes in stock: each byte is given out once, and a system call is paid once in 256 ids. */
const stock = Buffer.alloc(4096);
let used = stock.length;

function randomHex(bytes: number): string {
  if (used + bytes > stock.length) {
    randomFillSync(stock);
    used = 0;
  }
  const hex = stock.toString("hex", used, used + bytes);
  // A secret that was given out stays nowhere here.
  stock.fill(0, used, used + bytes);
  used += bytes;
  return hex;
}

export const newEpoch = (): Epoch => randomHex(8) as Epoch;
export const newToken = (): CapabilityToken => randomHex(16) as CapabilityToken;
export const newTransferId = (): TransferId => `${randomHex(16)}00000000` as TransferId;

export const attemptOf = (id: TransferId): number => Number.parseInt(id.slice(32), 16);
/** The same transfer, tried once more. */
export const nextAttempt = (id: TransferId): TransferId =>
  `${id.slice(0, 32)}${(attemptOf(id) + 1).toString(16).padStart(8, "0")}` as TransferId;
