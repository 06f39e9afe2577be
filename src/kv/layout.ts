import { groupsOf, type Layout, type ResolvedGroup } from "../layout.ts";
import type { RankShare } from "./ranks.ts";

export { headBytesOf, Layout } from "../layout.ts";

/** What a rank has of one group. */
export interface HeldGroup {
  readonly group: ResolvedGroup;
  /** Numbers of the model. */
  readonly layers: readonly number[];
  readonly heads: number;
  /** Of the model. */
  readonly firstHead: number;
  /** Elements of a row in a block: one for each token, or one. */
  readonly tokens: number;
}

export const heldGroups = (layout: Layout, share: RankShare): readonly HeldGroup[] =>
  groupsOf(layout).map((group) => {
    const { from, to } = group.headAxis ? share.heads : { from: 0, to: 1 };
    return {
      group,
      layers: group.layers.filter((layer) => layer >= share.layers.from && layer < share.layers.to),
      heads: to - from,
      firstHead: from,
      tokens: group.perBlock ? 1 : layout.tokensPerBlock,
    };
  });

/** Of one block of a pool that lies as we lay it, in bytes: rounded up to 64, so that each group starts on a cache line (design.md section 7). */
export const groupBytesOf = ({ group, layers, heads, tokens }: HeldGroup): number =>
  Math.ceil((layers.length * group.planes * heads * tokens * group.elementBytes) / 64) * 64;

/** Bytes of one block: of the whole model, or of what one rank has of it. */
export function blockBytesOf(layout: Layout, share?: RankShare): number {
  const whole = { layers: { from: 0, to: layout.layers }, heads: { from: 0, to: layout.kvHeads } };
  return heldGroups(layout, share ?? whole).reduce((sum, held) => sum + groupBytesOf(held), 0);
}

/**
 * The least blocks that a sequence needs, those of its last tokens: fewer than `blocksFor` where every group has a window, since what none
 * of them reaches is not moved.
 */
export function liveBlocksFor(tokens: number, layout: Layout): number {
  const windows = (layout.groups ?? []).map(({ window }) => window ?? Number.POSITIVE_INFINITY);
  const widest = windows.length === 0 ? Number.POSITIVE_INFINITY : Math.max(...windows);
  return blocksFor(tokens, layout) - Math.floor(Math.max(0, tokens - widest) / layout.tokensPerBlock);
}

export const blocksFor = (tokens: number, layout: Layout): number => Math.ceil(tokens / layout.tokensPerBlock);
