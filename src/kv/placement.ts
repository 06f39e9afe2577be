import type { Layout } from "../layout.ts";
import type { NativeGroup, NativeLayout } from "../native/plane_binding.ts";
import { blockBytesOf, groupBytesOf, type HeldGroup, heldGroups } from "./layout.ts";
import { type Parallel, type RankShare, shareOf } from "./ranks.ts";

/** Order inside a block: tokens of one head together, or heads of one token. */
export type BlockOrder = "HND" | "NHD";

/**
 * Where one group of an adopted pool lies, in bytes. The element of layer l, block b, plane p (K 0, V 1), head h, token t (each counted from
 * the rank's first; layers of the group only) begins at `bases[l] + b * block + p * plane + h * head + t * token`. Engines know these numbers as
 * their tensor's strides.
 */
export interface GroupPlacement {
  /** One for each layer of the group that the rank holds: from the start of a region of the pool, a number: of the first. */
  readonly bases: readonly (number | { readonly region: number; readonly offset: number })[];
  readonly strides: {
    readonly block: number;
    /** Not needed for a group of one plane, and so on. */
    readonly plane?: number | undefined;
    readonly head?: number | undefined;
    readonly token?: number | undefined;
  };
}

type Regions = readonly { readonly bytes: number }[];

/** By name of the group; "kv" where the layout names none. */
export type Placement = Readonly<Record<string, GroupPlacement>>;

const common = ({ group, layers, heads, firstHead }: HeldGroup) => ({
  planes: group.planes,
  heads,
  firstHead,
  elementBytes: group.elementBytes,
  perBlock: group.perBlock,
  replicated: !group.headAxis,
  window: group.window ?? 0,
  layers: Uint32Array.from(layers),
});

/** Blocks one after another, in each its groups, in those `[layer][plane]` and then as `order` says. */
function packed(layout: Layout, share: RankShare, order: BlockOrder): NativeLayout {
  const blockBytes = blockBytesOf(layout, share);
  const groups: NativeGroup[] = [];
  let start = 0;
  for (const held of heldGroups(layout, share)) {
    const { group, layers, heads, tokens } = held;
    const { elementBytes } = group;
    const at = start;
    const layerBytes = group.planes * heads * tokens * elementBytes;
    groups.push({
      ...common(held),
      blockStride: blockBytes,
      planeStride: heads * tokens * elementBytes,
      headStride: order === "HND" ? tokens * elementBytes : elementBytes,
      tokenStride: order === "HND" ? elementBytes : heads * elementBytes,
      bases: Float64Array.from(layers, (_, index) => at + index * layerBytes),
    });
    start += groupBytesOf(held);
  }
  return { tokensPerBlock: layout.tokensPerBlock, blockBytes, groups };
}

/** A placement that does not fit its layout; `field` is where in it. */
export class PlacementError extends Error {
  readonly field: string;
  constructor(field: string, why: string) {
    super(why);
    this.field = field;
  }
}

/** Regions are mapped one behind the other; a number counts on through them, too. */
function basesOf({ bases }: GroupPlacement, field: string, regions: Regions): Float64Array {
  return Float64Array.from(bases, (base) => {
    if (typeof base === "number") return base;
    const region = regions[base.region];
    if (region === undefined) throw new PlacementError(field, `there is no region ${base.region}`);
    if (base.offset >= region.bytes) {
      throw new PlacementError(field, `${base.offset} is not in region ${base.region} of ${region.bytes} bytes`);
    }
    return regions.slice(0, base.region).reduce((start, { bytes }) => start + bytes, base.offset);
  });
}

/** As the adopted pool's owner says. @throws PlacementError */
function placed(layout: Layout, share: RankShare, placement: Placement, regions: Regions): NativeLayout {
  const held = heldGroups(layout, share);
  const unknown = Object.keys(placement).find((name) => !held.some(({ group }) => group.name === name));
  if (unknown !== undefined) throw new PlacementError(`.${unknown}`, "the layout has no such group");
  const groups = held.map((one): NativeGroup => {
    const { name } = one.group;
    const where = placement[name];
    if (where === undefined) throw new PlacementError("", `it lacks the group ${name}`);
    const { bases, strides } = where;
    if (bases.length !== one.layers.length) {
      throw new PlacementError(`.${name}.bases`, `there are ${bases.length} for ${one.layers.length} layers`);
    }
    const needed = (field: "plane" | "head" | "token", extent: number): number => {
      const stride = strides[field];
      if (stride === undefined && extent > 1) throw new PlacementError(`.${name}.strides.${field}`, "it is missing");
      return stride ?? 0;
    };
    return {
      ...common(one),
      blockStride: strides.block,
      planeStride: needed("plane", one.group.planes),
      headStride: needed("head", one.heads),
      tokenStride: needed("token", one.tokens),
      bases: basesOf(where, `.${name}.bases`, regions),
    };
  });
  return { tokensPerBlock: layout.tokensPerBlock, blockBytes: 0, groups };
}

/** What options of a pool say about where its blocks lie. */
interface PoolPlaces {
  readonly order?: BlockOrder | undefined;
  readonly placement?: Placement | undefined;
  readonly adopt?: Regions | undefined;
}

/** How the pool of one rank lies in memory. @throws PlacementError; KvError as shareOf */
export function nativeLayoutOf(
  layout: Layout,
  parallel: Parallel,
  { order = "HND", placement, adopt = [] }: PoolPlaces,
): NativeLayout {
  const share = shareOf(layout, parallel);
  return placement === undefined ? packed(layout, share, order) : placed(layout, share, placement, adopt);
}
