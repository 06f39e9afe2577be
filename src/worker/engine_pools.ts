import type { Layout } from "../kv/layout.ts";
import { nativeLayoutOf } from "../kv/placement.ts";
import type { NativeRankPool } from "../native/engine_binding.ts";
import type { NativePoolSpan } from "../native/plane_binding.ts";
import type { KvInstance } from "../transceiver/instance.ts";
import type { EngineGeometry } from "./engine.ts";

/** What a model keeps, as its engine tells. Layers that look back equally far are a group. */
export function layoutOf({ layers, kvHeads, headDim, dtype, tokensPerBlock, windows = [] }: EngineGeometry): Layout {
  const layout = { layers, kvHeads, headDim, dtype, tokensPerBlock, attention: "gqa" } as const;
  if (windows.every((window) => window === 0)) return layout;
  const groups = [...new Set(windows)].map((window) => ({
    name: window === 0 ? "full" : `window ${window}`,
    kind: "kv" as const,
    layers: windows.flatMap((other, layer) => (other === window ? [layer] : [])),
    ...(window === 0 ? {} : { window }),
  }));
  return { ...layout, groups };
}

/** Each rank's memory with the groups that lie there, for `ReferenceEngine.attachRanks`. */
export const rankPools = ({ ranks }: Pick<KvInstance, "ranks">): readonly NativeRankPool[] =>
  ranks.flatMap(({ span, groups }) =>
    groups.filter(({ layers }) => layers.length > 0).map((places) => ({ span, places })),
  );

/** One pool of our own that holds all of the KV. */
export function wholePool(span: NativePoolSpan, geometry: EngineGeometry): readonly NativeRankPool[] {
  const { groups } = nativeLayoutOf(layoutOf(geometry), { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 }, {});
  return groups.map((places) => ({ span, places }));
}
