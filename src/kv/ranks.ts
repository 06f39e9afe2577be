import { KvError } from "../errors.ts";
import type { Layout } from "./layout.ts";

/** How many ranks an instance has. */
export interface ParallelSizes {
  readonly tpSize: number;
  readonly ppSize: number;
  /** Layers of each stage, in their order; default: as even as can be, the first stages have those that are left over. */
  readonly pipeline?: readonly number[] | undefined;
  /** Under attention DP each group of ranks counts as an instance; this is its number among those of its worker. Default 0. */
  readonly dpRank?: number | undefined;
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

/** What moves between two ranks. */
export interface RankPart extends RankShare {
  /** Groups without a head axis too: of several ranks that hold parts for one reader, one gives it those. */
  readonly replicated: boolean;
}

type Model = Pick<Layout, "layers" | "kvHeads">;

/** As TensorRT-LLM counts: all of one stage, then the next (trtllm-protocol.md section 4). */
export const rankOf = ({ tpRank, tpSize, ppRank }: Parallel): number => ppRank * tpSize + tpRank;

export const placeOf = (rank: number, sizes: ParallelSizes): Parallel => ({
  ...sizes,
  tpRank: rank % sizes.tpSize,
  ppRank: Math.floor(rank / sizes.tpSize),
});

export const ranksOf = ({ tpSize, ppSize }: ParallelSizes): readonly number[] =>
  Array.from({ length: tpSize * ppSize }, (_, rank) => rank);

/** `count` things in `parts` parts as even as can be, the first ones larger. */
function evenPart(count: number, parts: number, index: number): Range {
  const [base, extra] = [Math.floor(count / parts), count % parts];
  const from = index * base + Math.min(index, extra);
  return { from, to: from + base + (index < extra ? 1 : 0) };
}

/** With more ranks than heads each keeps one, neighbours the same. */
function headsOf(kvHeads: number, tpSize: number, tpRank: number): Range {
  if (tpSize <= kvHeads) return evenPart(kvHeads, tpSize, tpRank);
  const head = Math.floor((tpRank * kvHeads) / tpSize);
  return { from: head, to: head + 1 };
}

/** TP ranks that keep a head. */
function holdersOf(kvHeads: number, tpSize: number, head: number): Range {
  if (tpSize <= kvHeads) {
    const large = kvHeads % tpSize;
    const size = Math.floor(kvHeads / tpSize);
    const rank = head < large * (size + 1) ? Math.floor(head / (size + 1)) : Math.floor((head - large) / size);
    return { from: rank, to: rank + 1 };
  }
  return { from: Math.ceil((head * tpSize) / kvHeads), to: Math.ceil(((head + 1) * tpSize) / kvHeads) };
}

function layersOf({ layers }: Model, { ppSize, pipeline }: ParallelSizes, ppRank: number): Range {
  if (pipeline === undefined) {
    if (ppSize <= layers) return evenPart(layers, ppSize, ppRank);
    throw new KvError("INVALID_ARGUMENT", { what: `ppSize ${ppSize}`, why: `the model has ${layers} layers` });
  }
  const sum = pipeline.reduce((total, count) => total + count, 0);
  if (pipeline.length !== ppSize || sum !== layers) {
    const why = `${ppSize} stages of ${layers} layers in all are needed`;
    throw new KvError("INVALID_ARGUMENT", { what: `pipeline [${pipeline}]`, why });
  }
  const from = pipeline.slice(0, ppRank).reduce((total, count) => total + count, 0);
  return { from, to: from + (pipeline[ppRank] ?? 0) };
}

/**
 * The layers of its stage and the heads of its TP rank. Heads that TP does not divide are spread like layers: the first ranks have one more;
 * with more ranks than heads each head is kept by several.
 * @throws KvError INVALID_ARGUMENT, which names the sizes that the model can't be spread over
 */
export const shareOf = (model: Model, parallel: Parallel): RankShare => ({
  layers: layersOf(model, parallel, parallel.ppRank),
  heads: headsOf(model.kvHeads, parallel.tpSize, parallel.tpRank),
});

const both = (one: Range, other: Range): Range => {
  const from = Math.max(one.from, other.from);
  return { from, to: Math.max(from, Math.min(one.to, other.to)) };
};

const overlap = (left: Range, right: Range): boolean => left.from < right.to && right.from < left.to;

/**
 * The TP rank of a sender's instance that gives a reader one head. Of several that keep it each serves as many readers as the others, give or
 * take one: readers are counted stage by stage, and DP group by DP group. Between equal instances that is the rank with the reader's own number.
 */
function giverOf({ kvHeads }: Model, head: number, reader: Parallel, sender: ParallelSizes): number {
  const here = holdersOf(kvHeads, reader.tpSize, head);
  const there = holdersOf(kvHeads, sender.tpSize, head);
  const before = reader.ppRank + (reader.dpRank ?? 0) * reader.ppSize;
  const number = reader.tpRank - here.from + before * (here.to - here.from);
  return there.from + (number % (there.to - there.from));
}

/** The TP ranks, of each stage of a sender's instance, that a reader pulls from. Rising. */
function giversOf(model: Model, reader: Parallel, sender: ParallelSizes): readonly number[] {
  const { heads } = shareOf(model, reader);
  const givers = new Set<number>();
  for (let head = heads.from; head < heads.to; head++) givers.add(giverOf(model, head, reader, sender));
  return [...givers].sort((left, right) => left - right);
}

/** The ranks of a sender's instance that a reader pulls from: together they hold its share, each head once. */
export function neededRanks(model: Model, reader: Parallel, sender: ParallelSizes): readonly number[] {
  const { layers } = shareOf(model, reader);
  const givers = giversOf(model, reader, sender);
  return ranksOf(sender).filter((rank) => {
    const place = placeOf(rank, sender);
    return givers.includes(place.tpRank) && overlap(shareOf(model, place).layers, layers);
  });
}

/** What a reader takes from one rank that it needs; empty ranges where they have nothing in common. */
export function partOf(model: Model, reader: Parallel, sender: Parallel): RankPart {
  const [wanted, held] = [shareOf(model, reader), shareOf(model, sender)];
  const givers = giversOf(model, reader, sender);
  // In turns, so that not all readers take from the first.
  const giver = givers[(reader.tpRank + reader.ppRank + (reader.dpRank ?? 0)) % givers.length];
  return {
    layers: both(wanted.layers, held.layers),
    heads: both(wanted.heads, held.heads),
    replicated: sender.tpRank === giver,
  };
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
