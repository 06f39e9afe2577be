import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import type { Layout } from "../kv/layout.ts";

export type ProofRole = "receiver" | "sender";

export const newNonce = (): Uint8Array => randomBytes(32);

/** Shows that the writer knows `key` (an offer's token or the cluster secret), on this connection and in this role only. */
export function proofOf(role: ProofRole, key: string, senderNonce: Uint8Array, receiverNonce: Uint8Array): Uint8Array {
  return createHmac("sha256", key)
    .update(`kv-transceiver 1 ${role}`)
    .update(senderNonce)
    .update(receiverNonce)
    .digest();
}

/** In constant time. */
export const equalBytes = (left: Uint8Array, right: Uint8Array): boolean =>
  left.length === right.length && timingSafeEqual(left, right);

/** In constant time; for tokens of one fixed length. */
export const equalTokens = (left: string, right: string): boolean => equalBytes(Buffer.from(left), Buffer.from(right));

/** Equal for layouts between which KV can move, whatever their block sizes are: the field order is fixed here. */
export function layoutDigest(layout: Layout): string {
  const { layers, kvHeads, headDim, dtype, attention } = layout;
  const text = JSON.stringify([layers, kvHeads, headDim, dtype, attention === "mla"]);
  return createHash("sha256").update(text).digest("hex").slice(0, 32);
}

/** `name here 4, there 8` for every field that keeps KV from moving; empty: it can. mha and gqa name the same bytes. */
export function layoutDifferences(here: Layout, there: Layout): string {
  const plain = (layout: Layout) => ({ ...layout, attention: layout.attention === "mla" ? "mla" : "mha or gqa" });
  const [left, right] = [plain(here), plain(there)];
  const names = ["layers", "kvHeads", "headDim", "dtype", "attention"] as const;
  return names
    .filter((name) => left[name] !== right[name])
    .map((name) => `${name} here ${left[name]}, there ${right[name]}`)
    .join("; ");
}
