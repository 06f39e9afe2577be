import { KvError } from "../errors.ts";
import type { Layout } from "./layout.ts";

/** How many ranks an instance has. */
export interface ParallelSizes {
  readonly tpSize: number;
  readonly ppSize: number;
}

/** One rank's place in its instance. */
export interface Parallel extends ParallelSizes {
  readonly tpRank: number;
  readonly ppRank: number;
  /** Ranks that a sequence's tokens are spread over (context parallelism): only 1 is supported. */
  readonly cpSize?: 1 | undefined;
}

/** [from, to) */
export interface Range {
  readonly from: number;
  readonly to: number;
}

/** What one rank holds of the model's KV. */
export interface RankShare {
  readonly layers: Range;
  readonly heads: Range;
}

type Model = Pick<Layout, "layers" | "kvHeads">;

/** As TensorRT-LLM counts: all of one stage, then the next (trtllm-protocol.md section 4). */
export const rankOf = ({ tpRank, tpSize, ppRank }: Parallel): number => ppRank * tpSize + tpRank;

export const placeOf = (rank: number, { tpSize, ppSize }: ParallelSizes): Parallel => ({
  tpRank: rank % tpSize,
  tpSize,
  ppRank: Math.floor(rank / tpSize),
  ppSize,
});

export const ranksOf = ({ tpSize, ppSize }: ParallelSizes): readonly number[] =>
  Array.from({ length: tpSize * ppSize }, (_, rank) => rank);

/** TP ranks that hold the same head: more than one when there are more ranks than heads. */
const replicas = ({ kvHeads }: Model, tpSize: number): number => Math.max(1, tpSize / kvHeads);

/**
 * The layers of its stage (the first `layers % ppSize` stages have one more) and the heads of its TP rank (with more ranks than heads each
 * head is kept by several).
 * @throws KvError INVALID_ARGUMENT, which names the sizes that don't divide
 */
export function shareOf(model: Model, parallel: Parallel): RankShare {
  const { layers, kvHeads } = model;
  const { tpRank, tpSize, ppRank, ppSize } = parallel;
  if (kvHeads % tpSize !== 0 && tpSize % kvHeads !== 0) {
    const why = `${kvHeads} KV heads can't be spread evenly over them; use a divisor or a multiple of ${kvHeads}`;
    throw new KvError("INVALID_ARGUMENT", { what: `tpSize ${tpSize}`, why });
  }
  if (ppSize > layers) {
    throw new KvError("INVALID_ARGUMENT", { what: `ppSize ${ppSize}`, why: `the model has ${layers} layers` });
  }
  const [base, extra] = [Math.floor(layers / ppSize), layers % ppSize];
  const firstLayer = ppRank * base + Math.min(ppRank, extra);
  const heads = Math.max(1, kvHeads / tpSize);
  const firstHead = Math.floor(tpRank / replicas(model, tpSize)) * heads;
  return {
    layers: { from: firstLayer, to: firstLayer + base + (ppRank < extra ? 1 : 0) },
    heads: { from: firstHead, to: firstHead + heads },
  };
}

/** What the pool of one rank of a model with `layout` holds. */
export function layoutOfRank(layout: Layout, parallel: Parallel): Layout {
  const { layers, heads } = shareOf(layout, parallel);
  return { ...layout, layers: layers.to - layers.from, kvHeads: heads.to - heads.from };
}

/** Layers and heads in both; empty ranges where there are none. */
export function commonOf(left: RankShare, right: RankShare): RankShare {
  const both = (one: Range, other: Range): Range => {
    const from = Math.max(one.from, other.from);
    return { from, to: Math.max(from, Math.min(one.to, other.to)) };
  };
  return { layers: both(left.layers, right.layers), heads: both(left.heads, right.heads) };
}

const overlap = (left: Range, right: Range): boolean => left.from < right.to && right.from < left.to;

/**
 * The ranks of a sender's instance that a reader pulls from: together they hold its share, each head once. Of replicas it takes the one
 * whose number is its own, so that equal layouts read rank by rank.
 */
export function neededRanks(model: Model, reader: Parallel, sender: ParallelSizes): readonly number[] {
  const wanted = shareOf(model, reader);
  const copies = replicas(model, sender.tpSize);
  const copy = (reader.tpRank % replicas(model, reader.tpSize)) % copies;
  return ranksOf(sender).filter((rank) => {
    const place = placeOf(rank, sender);
    const held = shareOf(model, place);
    return place.tpRank % copies === copy && overlap(held.layers, wanted.layers) && overlap(held.heads, wanted.heads);
  });
}

/** Ranks of a sender's instance whose KV no rank of the reader's needs: replicas of others. */
export function unneededRanks(model: Model, reader: ParallelSizes, sender: ParallelSizes): readonly number[] {
  const needed = new Set(ranksOf(reader).flatMap((rank) => neededRanks(model, placeOf(rank, reader), sender)));
  return ranksOf(sender).filter((rank) => !needed.has(rank));
}

/**
 * The ranks of a reader's instance that end one sender rank's offer: those that need it, or, when none does, the first that could have
 * read a part of it.
 */
export function readersOf(model: Model, sender: Parallel, reader: ParallelSizes): readonly number[] {
  const own = rankOf(sender);
  const readers = ranksOf(reader).filter((rank) => neededRanks(model, placeOf(rank, reader), sender).includes(own));
  if (readers.length > 0) return readers;
  const held = shareOf(model, sender);
  return ranksOf(reader)
    .filter((rank) => {
      const { layers, heads } = shareOf(model, placeOf(rank, reader));
      return overlap(held.layers, layers) && overlap(held.heads, heads);
    })
    .slice(0, 1);
}
