import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { type Layout, layoutKey } from "../layout.ts";

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

/** Equal for layouts between which KV can move. */
export const layoutDigest = (layout: Layout): string =>
  createHash("sha256").update(layoutKey(layout)).digest("hex").slice(0, 32);
