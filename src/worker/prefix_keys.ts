import { hash } from "node:crypto";

/**
 * Names the tokens from 0 to the end of one block, as TensorRT-LLM's `v2_sha256` does: SHA-256, in hex, over the previous block's key and
 * this block's token ids, 64 bits each, little-endian.
 */
export type PrefixKey = string;

/** Name of `blockHash` in KV events and in `/server_info`. */
export const KV_CACHE_HASH_ALGO = "v2_sha256_64";

/** What comes before the first block: the hash of a reuse scope without LoRA and without salt, whose mask byte is 0. */
export const ROOT_KEY: PrefixKey = hash("sha256", Buffer.of(0), "hex");

const KEY_BYTES = 32;
const TOKEN_BYTES = 8;

/** The key of a block that comes after `parent`. A block that is not full has one too: `tokens` are what it holds. */
export function keyAfter(parent: PrefixKey, tokens: Uint32Array): PrefixKey {
  const bytes = Buffer.alloc(KEY_BYTES + TOKEN_BYTES * tokens.length);
  bytes.write(parent, 0, "hex");
  for (const [index, token] of tokens.entries()) bytes.writeUInt32LE(token, KEY_BYTES + TOKEN_BYTES * index);
  return hash("sha256", bytes, "hex");
}

/** Keys of the full blocks of `tokens`, in order. A key names the whole prefix, so equal keys mean equal KV. */
export function prefixKeys(tokens: Uint32Array, tokensPerBlock: number, from: readonly PrefixKey[] = []): PrefixKey[] {
  const keys = [...from];
  for (let block = keys.length; (block + 1) * tokensPerBlock <= tokens.length; block++) {
    keys.push(keyAfter(keys.at(-1) ?? ROOT_KEY, tokens.subarray(block * tokensPerBlock, (block + 1) * tokensPerBlock)));
  }
  return keys;
}

/** `v2_sha256_64`: the first 64 bits of a key, big-endian, unsigned. */
export const blockHash = (key: PrefixKey): bigint => BigInt(`0x${key.slice(0, 16)}`);
