import { KvError } from "../errors.ts";
import { type Layout, liveBlocksFor } from "../kv/layout.ts";
import type { BlockHold, BlockPool } from "../kv/pool.ts";
import type { FirstTokens } from "./api.ts";

/** @throws KvError INVALID_ARGUMENT */
export function checkSkip(skipTokens: number, tokens: number): void {
  if (Number.isInteger(skipTokens) && skipTokens >= 0 && skipTokens <= tokens) return;
  throw new KvError("INVALID_ARGUMENT", { what: `skipTokens ${skipTokens}`, why: `the offer has ${tokens} tokens` });
}

/** @throws KvError INVALID_ARGUMENT */
export function checkBlocks(blocks: BlockHold, tokens: number, pool: BlockPool, layout: Layout): void {
  if (!Number.isSafeInteger(tokens) || tokens < 1) {
    throw new KvError("INVALID_ARGUMENT", { what: `tokens ${tokens}`, why: "a sequence has at least one" });
  }
  if (blocks.pool !== pool) {
    throw new KvError("INVALID_ARGUMENT", { what: "blocks", why: "they belong to another pool" });
  }
  const needed = liveBlocksFor(tokens, layout);
  if (blocks.ids.length < needed) {
    const why = `${tokens} tokens need ${needed} blocks of ${layout.tokensPerBlock}`;
    throw new KvError("INVALID_ARGUMENT", { what: `a hold of ${blocks.ids.length} blocks`, why });
  }
}

/** @throws KvError INVALID_ARGUMENT */
export function checkLayers(layers: number | undefined, all: number): void {
  if (layers === undefined || (Number.isInteger(layers) && layers >= 1 && layers <= all)) return;
  throw new KvError("INVALID_ARGUMENT", { what: `layers ${layers}`, why: `the model has ${all}` });
}

/** @throws KvError INVALID_ARGUMENT */
export function checkedFirst(first: FirstTokens): FirstTokens {
  const { firstTokens } = first;
  const isToken = (token: number): boolean => Number.isSafeInteger(token) && token >= 0;
  if (firstTokens.length >= 1 && firstTokens.length <= 64 && firstTokens.every(isToken)) return first;
  throw new KvError("INVALID_ARGUMENT", { what: "firstTokens", why: "they are 1 to 64 token ids" });
}
