import { z } from "zod";

const bytesOf = { f32: 4, f16: 2, bf16: 2, fp8_e4m3: 1, fp8_e5m2: 1, int8: 1 } as const;

const LAYERS_LIMIT = 4096;
/** Bytes of one token, or one block, in one layer. */
const GROUP_BYTES_LIMIT = 1 << 30;

const groupShape = {
  /** The two sides of a transfer pair their groups by name. */
  name: z.string().min(1).max(64),
  /**
   * kv: K and V of each head. latent: one vector for all heads (MLA). scales: of quantized KV. opaque: bytes that nobody but the engine
   * understands, which move only between instances of the same blocks and ranks.
   */
  kind: z.enum(["kv", "latent", "scales", "opaque"]),
  /** Numbers of the model's layers that have it, rising; default all. */
  layers: z
    .array(
      z
        .int()
        .min(0)
        .max(LAYERS_LIMIT - 1),
    )
    .min(1)
    .max(LAYERS_LIMIT)
    .optional(),
  /** Of one token in one layer of the whole model: all planes and heads. Default for kv and latent: as headDim and dtype say. */
  bytesPerToken: z.int().min(1).max(GROUP_BYTES_LIMIT).optional(),
  /** Instead: of one block, whatever tokens it has. Such groups move between blocks of one size only. */
  bytesPerBlock: z.int().min(1).max(GROUP_BYTES_LIMIT).optional(),
  /** Whether the bytes are those of the KV heads, one after another, so that each rank has those of its heads. Default: kv and scales. */
  headAxis: z.boolean().optional(),
  /** 2: as much for V as for K, K first. Default 2 for kv, and for scales beside K and V. */
  planes: z.int().min(1).max(2).optional(),
  /** Tokens that attention looks back over in these layers: older ones are not moved. Default: all. */
  window: z.int().min(1).max(1_073_741_824).optional(),
};
export const LayoutGroup = z.strictObject(groupShape);
export type LayoutGroup = z.infer<typeof LayoutGroup>;

const layoutShape = {
  layers: z.int().min(1).max(LAYERS_LIMIT),
  kvHeads: z.int().min(1).max(4096),
  headDim: z.int().min(1).max(65536),
  dtype: z.enum(["f32", "f16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"]),
  tokensPerBlock: z.int().min(1).max(65536).default(32),
  attention: z.enum(["mha", "gqa", "mla"]).default("gqa"),
  /** What a block holds, where that is more or other than one kind of KV in every layer. */
  groups: z.array(LayoutGroup).min(1).max(16).optional(),
};

/** Geometry of the KV of a whole model, whatever part of it a rank holds. */
export const Layout = z.strictObject(layoutShape).superRefine((layout, context) => {
  const refuse = (index: number, field: string, message: string): void =>
    context.addIssue({ code: "custom", path: ["groups", index, field], message });
  const names = new Set<string>();
  for (const [index, group] of (layout.groups ?? []).entries()) {
    if (names.has(group.name)) refuse(index, "name", `another group is called ${group.name}`);
    names.add(group.name);
    for (const [at, layer] of (group.layers ?? []).entries()) {
      if (layer >= layout.layers) refuse(index, "layers", `layer ${layer} is not one of ${layout.layers}`);
      if (at > 0 && layer <= (group.layers?.[at - 1] ?? 0)) refuse(index, "layers", "must rise");
    }
    const sized = group.bytesPerToken !== undefined || group.bytesPerBlock !== undefined;
    if (group.bytesPerToken !== undefined && group.bytesPerBlock !== undefined) {
      refuse(index, "bytesPerBlock", "a group has bytesPerToken or bytesPerBlock, not both");
    } else if (!sized && (group.kind === "scales" || group.kind === "opaque")) {
      refuse(index, "bytesPerToken", `a group of ${group.kind} needs bytesPerToken or bytesPerBlock`);
    } else {
      const { planes, heads, elementBytes } = resolve(layout, group);
      if (!Number.isInteger(elementBytes)) {
        const field = group.bytesPerBlock === undefined ? "bytesPerToken" : "bytesPerBlock";
        refuse(index, field, `must be a multiple of ${planes * heads}: ${planes} planes of ${heads} heads`);
      }
    }
  }
});
export type Layout = z.infer<typeof Layout>;

/** A group with every default in its place: `elementBytes` bytes for each of its layers, planes, heads and tokens (or blocks). */
export interface ResolvedGroup {
  readonly name: string;
  readonly kind: LayoutGroup["kind"];
  /** Rising. */
  readonly layers: readonly number[];
  readonly planes: number;
  /** Of the model; 1 without a head axis. */
  readonly heads: number;
  readonly headAxis: boolean;
  readonly elementBytes: number;
  readonly perBlock: boolean;
  /** null: all tokens. */
  readonly window: number | null;
}

type Shape = Omit<Layout, "groups">;

function resolve(layout: Shape, group: LayoutGroup): ResolvedGroup {
  const { name, kind, bytesPerBlock, window = null } = group;
  const headAxis = group.headAxis ?? (kind === "kv" || kind === "scales");
  const heads = headAxis ? layout.kvHeads : 1;
  const planes = group.planes ?? (kind === "kv" || (kind === "scales" && layout.attention !== "mla") ? 2 : 1);
  const bytes = bytesPerBlock ?? group.bytesPerToken ?? planes * heads * headBytesOf(layout);
  return {
    name,
    kind,
    layers: group.layers ?? Array.from({ length: layout.layers }, (_, layer) => layer),
    planes,
    heads,
    headAxis,
    elementBytes: bytes / (planes * heads),
    perBlock: bytesPerBlock !== undefined,
    window,
  };
}

/** Bytes of one head's vector of one token. */
export const headBytesOf = ({ headDim, dtype }: Pick<Layout, "headDim" | "dtype">): number => headDim * bytesOf[dtype];

/** What a block holds, by name: the order in which both sides of a transfer count them. */
export function groupsOf(layout: Layout): readonly ResolvedGroup[] {
  const whole: LayoutGroup = { name: "kv", kind: layout.attention === "mla" ? "latent" : "kv", headAxis: true };
  const groups = (layout.groups ?? [whole]).map((group) => resolve(layout, group));
  return groups.sort((left, right) => (left.name < right.name ? -1 : 1));
}

/** Some group moves only between blocks of one size. */
const bindsBlocks = (groups: readonly ResolvedGroup[]): boolean =>
  groups.some(({ kind, perBlock }) => kind === "opaque" || perBlock);

const bindsRanks = (groups: readonly ResolvedGroup[]): boolean => groups.some(({ kind }) => kind === "opaque");

type Fields = Record<string, string | number | boolean>;

/** `0-3,5`: shorter than every number. */
function rangesOf(layers: readonly number[]): string {
  const parts: string[] = [];
  for (let at = 0; at < layers.length; ) {
    let end = at;
    while (layers[end + 1] === (layers[end] ?? 0) + 1) end++;
    parts.push(end === at ? `${layers[at]}` : `${layers[at]}-${layers[end]}`);
    at = end + 1;
  }
  return parts.join(",");
}

/** All that two layouts must have in common, by the names that users know them under. */
function commonFields(layout: Layout, pairsGroups: boolean): Fields {
  const { layers, kvHeads, headDim, dtype, tokensPerBlock } = layout;
  const groups = groupsOf(layout);
  const attention = layout.attention === "mla" ? "mla" : "mha or gqa";
  const fields: Fields = { layers, kvHeads, headDim, dtype, attention };
  if (bindsBlocks(groups)) fields.tokensPerBlock = tokensPerBlock;
  if (!pairsGroups) return fields;
  for (const group of groups) {
    const { planes, heads, elementBytes, perBlock } = group;
    const name = `groups.${group.name}.`;
    fields[`${name}kind`] = group.kind;
    fields[`${name}layers`] = rangesOf(group.layers);
    fields[`${name}headAxis`] = group.headAxis;
    fields[`${name}planes`] = planes;
    fields[`${name}${perBlock ? "bytesPerBlock" : "bytesPerToken"}`] = planes * heads * elementBytes;
    fields[`${name}window`] = group.window ?? "none";
  }
  return fields;
}

/** An instance as its layout looks to a peer. */
export interface InstanceLayout {
  readonly layout: Layout;
  readonly tpSize: number;
  readonly ppSize: number;
  readonly pipeline?: readonly number[] | undefined;
}

/** Equal for layouts between which KV can move, whatever their block sizes are: the order of the fields is fixed here. */
export const layoutKey = (layout: Layout): string => JSON.stringify(Object.entries(commonFields(layout, true)));

function compare(here: Fields, there: Fields): readonly string[] {
  // Of a group that one side lacks, its kind says it all.
  const told = (name: string): boolean => {
    const kind = name.replace(/^(groups\..*\.).*$/, "$1kind");
    return kind === name || (kind in here && kind in there);
  };
  return [...new Set([...Object.keys(here), ...Object.keys(there)])]
    .filter((name) => here[name] !== there[name] && (!name.startsWith("groups.") || told(name)))
    .map((name) => `${name} here ${here[name] ?? "none"}, there ${there[name] ?? "none"}`);
}

/** `name here 4, there 8` for every field that keeps KV from moving; empty: it can. mha and gqa name the same bytes. */
export function layoutDifferences(here: Layout, there: Layout): string {
  const pairsGroups = here.groups !== undefined || there.groups !== undefined;
  const left = commonFields(here, pairsGroups);
  const right = commonFields(there, pairsGroups);
  // Where only one side has groups that bind it, the groups differ already.
  if (left.tokensPerBlock === undefined || right.tokensPerBlock === undefined) {
    delete left.tokensPerBlock;
    delete right.tokensPerBlock;
  }
  return compare(left, right).join("; ");
}

/** As `layoutDifferences`, between whole instances: opaque bytes move between equal numbers of ranks only. */
export function instanceDifferences(here: InstanceLayout, there: InstanceLayout): string {
  const differences = [layoutDifferences(here.layout, there.layout)];
  if (bindsRanks(groupsOf(here.layout)) && bindsRanks(groupsOf(there.layout))) {
    const sizes = ({ tpSize, ppSize, pipeline }: InstanceLayout): Fields => ({
      tpSize,
      ppSize,
      pipeline: pipeline === undefined ? "even" : `[${pipeline}]`,
    });
    differences.push(...compare(sizes(here), sizes(there)));
  }
  return differences.filter((text) => text !== "").join("; ");
}
