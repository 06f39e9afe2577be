import type { z } from "zod";
import type { Placement } from "../../../src/kv/placement.ts";
import type { Layout } from "../../../src/layout.ts";
import type { Shape } from "./instance_shapes.ts";
import { type AdoptedPool, BLOCKS } from "./placed_peer.ts";

/** What a model may keep. */
export interface LayoutKind {
  readonly layout: Omit<z.input<typeof Layout>, "tokensPerBlock">;
  /** Of the instances; each is both sides of a pair with each. */
  readonly shapes: readonly Shape[];
  /** Tokens after which it needs none that is older. */
  readonly keeps?: number;
}

const plain = { layers: 6, kvHeads: 4, headDim: 8 };

const shapes: readonly Shape[] = [
  [1, 1, 8, "HND"],
  [2, 2, 8, "NHD"],
  [3, [1, 5], 16, "HND"],
  [8, 1, 4, "NHD"],
];
const ofOneSize = shapes.map(([tp, pp, , ...order]): Shape => [tp, pp, 8, ...order]);

/** Together they have every kind of group, every dtype, windows, and every number of TP ranks on either side. */
export const kinds: Readonly<Record<string, LayoutKind>> = {
  "K and V": {
    layout: { ...plain, dtype: "fp8_e5m2" },
    shapes: [
      [1, 1, 8, "HND"],
      [2, 2, 8, "NHD"],
      [3, 1, 16, "HND"],
      [4, [1, 4, 1], 32, "HND"],
      [8, 1, 4, "NHD"],
    ],
  },
  "K and V of eight heads": {
    layout: { ...plain, kvHeads: 8, layers: 3, dtype: "f32" },
    shapes: [
      [3, 1, 8, "HND"],
      [4, [2, 1], 16, "NHD"],
      [8, 1, 8, "HND"],
    ],
  },
  "one latent for all heads": {
    layout: { ...plain, attention: "mla", kvHeads: 1, headDim: 36, dtype: "bf16" },
    shapes,
  },
  "one latent and the keys of an indexer": {
    layout: {
      ...plain,
      attention: "mla",
      kvHeads: 1,
      dtype: "fp8_e4m3",
      groups: [
        { name: "latent", kind: "latent", bytesPerToken: 72 },
        { name: "indexer", kind: "latent", layers: [1, 2, 5], bytesPerToken: 13 },
      ],
    },
    shapes,
  },
  "K and V with scales of each head and a latent beside them": {
    layout: {
      ...plain,
      dtype: "int8",
      groups: [
        { name: "kv", kind: "kv" },
        { name: "scales", kind: "scales", bytesPerToken: 32 },
        { name: "latent", kind: "latent", layers: [0, 5], bytesPerToken: 10 },
      ],
    },
    shapes,
  },
  "scales of a whole block": {
    layout: {
      ...plain,
      dtype: "fp8_e4m3",
      groups: [
        { name: "kv", kind: "kv" },
        { name: "scales", kind: "scales", bytesPerBlock: 32 },
      ],
    },
    shapes: ofOneSize,
  },
  "opaque bytes beside K and V, between equal ranks and blocks": {
    layout: {
      ...plain,
      dtype: "bf16",
      groups: [
        { name: "kv", kind: "kv" },
        { name: "state", kind: "opaque", bytesPerToken: 5 },
        { name: "page", kind: "opaque", layers: [0, 2, 4], bytesPerBlock: 9 },
      ],
    },
    shapes: [
      [2, [4, 2], 8, "HND"],
      [2, [4, 2], 8, "NHD"],
    ],
  },
  "layers that all have windows, of which the older blocks were given back and taken by others": {
    layout: {
      ...plain,
      dtype: "f16",
      groups: [
        { name: "near", kind: "kv", layers: [0, 2, 4], window: 7 },
        { name: "far", kind: "kv", layers: [1, 3, 5], window: 20 },
      ],
    },
    keeps: 20,
    shapes,
  },
  "layers with a window among others": {
    layout: {
      ...plain,
      dtype: "fp8_e5m2",
      groups: [
        { name: "full", kind: "kv", layers: [0, 3] },
        { name: "local", kind: "kv", layers: [1, 2, 4, 5], window: 20 },
      ],
    },
    shapes,
  },
};

/** Two heads of 16 bytes, 8 tokens a block. */
export const adoptedLayout = {
  layers: 4,
  kvHeads: 2,
  headDim: 8,
  dtype: "bf16",
  tokensPerBlock: 8,
  attention: "gqa",
} as const;
const VECTOR = 16;
/** K and V of one layer, [2, blocks, tokens, heads, headDim]: what an engine allocates for each layer by itself. */
const LAYER_BYTES = 2 * BLOCKS * 8 * 2 * VECTOR;
const layerStrides = { plane: LAYER_BYTES / 2, block: 8 * 2 * VECTOR, token: 2 * VECTOR, head: VECTOR };
const inRegion = (regions: readonly number[]) => regions.map((region) => ({ region, offset: 0 }));

const PAGE = 4096;
const MIB = 1 << 20;
const oneRegion = (memory: string, placement: Placement): AdoptedPool => ({
  memory,
  files: 1,
  bytes: MIB + PAGE,
  regions: [{ file: 0, offset: PAGE, bytes: MIB }],
  blocks: BLOCKS,
  placement,
});

/** Where engines have their KV. */
export const adoptedPools: Readonly<Record<string, AdoptedPool>> = {
  "a tensor a layer, [2, blocks, tokens, heads, headDim], in any order": oneRegion("tensors", {
    kv: { bases: [300_000, 4096, 200_064, 100_000], strides: layerStrides },
  }),
  "a tensor a layer, [blocks, 2, heads, tokens, headDim], rows padded": oneRegion("padded", {
    kv: {
      bases: [0, 1, 2, 3].map((layer) => layer * 40_000),
      strides: { block: 2 * 2 * 8 * 24 + 64, plane: 2 * 8 * 24, head: 8 * 24, token: 24 },
    },
  }),
  "one tensor, [2, layers, blocks, tokens, heads, headDim]": oneRegion("one", {
    kv: {
      bases: [0, 1, 2, 3].map((layer) => layer * BLOCKS * 8 * 2 * VECTOR),
      strides: { plane: 4 * BLOCKS * 8 * 2 * VECTOR, block: 8 * 2 * VECTOR, token: 2 * VECTOR, head: VECTOR },
    },
  }),
  "a region a layer, two of them in one memfd, in any order": {
    memory: "regions",
    files: 3,
    bytes: 2 * LAYER_BYTES,
    regions: [
      { file: 2, offset: LAYER_BYTES, bytes: LAYER_BYTES },
      { file: 0, offset: 0, bytes: LAYER_BYTES },
      { file: 2, offset: 0, bytes: LAYER_BYTES },
      { file: 1, offset: PAGE, bytes: LAYER_BYTES },
    ],
    blocks: BLOCKS,
    placement: { kv: { bases: inRegion([2, 0, 3, 1]), strides: layerStrides } },
  },
};

/** Full layers and layers with a window, in turn. */
export const hybrid = {
  layout: {
    ...adoptedLayout,
    groups: [
      { name: "full", kind: "kv", layers: [0, 2] },
      { name: "local", kind: "kv", layers: [1, 3], window: 20 },
    ],
  },
  keeps: { all: null, near: 20 },
} as const;

/**
 * As an engine has it that hands the same pages out to either kind, and keeps a table for each: the first layers of both share a tensor, and so
 * do the last. Of a sequence's pages those that the window has left belong to others.
 */
export const sharedPages: AdoptedPool = {
  memory: "pages",
  files: 2,
  bytes: LAYER_BYTES,
  regions: [0, 1].map((file) => ({ file, offset: 0, bytes: LAYER_BYTES })),
  blocks: BLOCKS,
  placement: {
    full: { bases: inRegion([0, 1]), strides: layerStrides },
    local: { bases: inRegion([0, 1]), strides: layerStrides },
  },
  tables: { near: ["local"], all: ["full"] },
  ids: { all: [3, 30, 7, 12, 11, 5, 39, 20], near: [33, 34, 35, 36, 37, 4, 8, 2] },
};
