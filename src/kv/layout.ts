import { headBytesOf, type Layout } from "../layout.ts";

export { headBytesOf, Layout } from "../layout.ts";

/** 2 planes (K and V), or one latent for MLA. */
export const planesOf = (layout: Layout): number => (layout.attention === "mla" ? 1 : 2);

/** Bytes of one token over all layers, planes and heads. */
export const tokenBytesOf = (layout: Layout): number =>
  layout.layers * planesOf(layout) * layout.kvHeads * headBytesOf(layout);

/** Bytes of one block, rounded up to 64 so that blocks start on cache lines (design.md section 7). */
export const blockBytesOf = (layout: Layout): number =>
  Math.ceil((tokenBytesOf(layout) * layout.tokensPerBlock) / 64) * 64;

export const blocksFor = (tokens: number, layout: Layout): number => Math.ceil(tokens / layout.tokensPerBlock);
