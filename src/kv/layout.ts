import { z } from "zod";

const bytesOf = { f32: 4, f16: 2, bf16: 2, fp8_e4m3: 1, fp8_e5m2: 1, int8: 1 } as const;

/** Geometry of the KV that one rank holds. Both sides of a pair compare it at HELLO; a difference is refused by name. */
export const Layout = z.strictObject({
  layers: z.int().min(1).max(4096),
  kvHeads: z.int().min(1).max(4096),
  headDim: z.int().min(1).max(65536),
  dtype: z.enum(["f32", "f16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"]),
  tokensPerBlock: z.int().min(1).max(65536).default(32),
  attention: z.enum(["mha", "gqa", "mla"]).default("gqa"),
});
export type Layout = z.infer<typeof Layout>;

/** 2 planes (K and V), or one latent for MLA. */
export const planesOf = (layout: Layout): number => (layout.attention === "mla" ? 1 : 2);

/** Bytes of one head's vector of one token. */
export const headBytesOf = (layout: Layout): number => layout.headDim * bytesOf[layout.dtype];

/** Bytes of one token over all layers, planes and heads. */
export const tokenBytesOf = (layout: Layout): number =>
  layout.layers * planesOf(layout) * layout.kvHeads * headBytesOf(layout);

/** Bytes of one block, rounded up to 64 so that blocks start on cache lines (design.md section 7). */
export const blockBytesOf = (layout: Layout): number =>
  Math.ceil((tokenBytesOf(layout) * layout.tokensPerBlock) / 64) * 64;

export const blocksFor = (tokens: number, layout: Layout): number => Math.ceil(tokens / layout.tokensPerBlock);
