import type { Layout } from "../kv/layout.ts";
import {
  neededRanks,
  type Parallel,
  type ParallelSizes,
  partOf,
  placeOf,
  type RankPart,
  rankOf,
  readersOf,
  shareOf,
  unneededRanks,
} from "../kv/ranks.ts";
import { instanceDifferences } from "../layout.ts";

/** Ranks of one instance; more are no instance of ours. */
export const RANKS_LIMIT = 1024;

interface Sources {
  /** To pull from, in rank order. */
  readonly needed: readonly number[];
  /** Nobody reads these; they hear it from this rank. */
  readonly unneeded: readonly number[];
}

const isInstance = ({ tpSize, ppSize }: ParallelSizes): boolean =>
  tpSize >= 1 && ppSize >= 1 && tpSize * ppSize <= RANKS_LIMIT;

/** Shapes that are remembered: peers say what theirs is. */
const SHAPES_LIMIT = 64;

/** What depends on the shape of a peer's instance, each part worked out when it is first asked for. */
interface PeerShape {
  sources?: Sources;
  readers?: readonly number[];
  /** By the peer's rank: what this rank reads from it, and it from here. */
  readonly read: Map<number, RankPart>;
  readonly given: Map<number, RankPart>;
}

/** What this rank has to do with the ranks of other instances of the same model, worked out once for each shape of instance. */
export class PeerRanks {
  readonly #layout: Layout;
  readonly #own: Parallel;
  readonly #shapes = new Map<string, PeerShape>();

  constructor(layout: Layout, own: Parallel) {
    this.#layout = layout;
    this.#own = own;
  }

  /** @throws KvError INVALID_ARGUMENT when the model can't be spread like that */
  sources(sender: ParallelSizes): Sources {
    const shape = this.#shape(sender);
    if (shape.sources === undefined) {
      const needed = neededRanks(this.#layout, this.#own, sender);
      const own = rankOf(this.#own);
      const unneeded = unneededRanks(this.#layout, this.#own, sender).filter((rank) =>
        readersOf(this.#layout, placeOf(rank, sizesOf(sender)), this.#own).includes(own),
      );
      shape.sources = { needed, unneeded };
    }
    return shape.sources;
  }

  /** What this rank takes from one that it needs. */
  partFrom(rank: number, sender: ParallelSizes): RankPart {
    const { read } = this.#shape(sender);
    let part = read.get(rank);
    if (part === undefined) {
      part = partOf(this.#layout, this.#own, placeOf(rank, sizesOf(sender)));
      read.set(rank, part);
    }
    return part;
  }

  /** What one of this rank's readers takes. */
  partFor(rank: number, reader: ParallelSizes): RankPart {
    const { given } = this.#shape(reader);
    let part = given.get(rank);
    if (part === undefined) {
      part = partOf(this.#layout, placeOf(rank, sizesOf(reader)), this.#own);
      given.set(rank, part);
    }
    return part;
  }

  /** The ranks that end this rank's offer; none when the model can't be spread like that. */
  readers(reader: ParallelSizes): readonly number[] {
    if (!isInstance(reader) || !this.#fits(reader)) return [];
    const shape = this.#shape(reader);
    shape.readers ??= this.#holds(reader) ? readersOf(this.#layout, this.#own, sizesOf(reader)) : [];
    return shape.readers;
  }

  /** Opaque bytes move between equal instances only. */
  #fits({ tpSize, ppSize, pipeline }: ParallelSizes): boolean {
    const layout = this.#layout;
    if (layout.groups === undefined) return true;
    return instanceDifferences({ layout, ...this.#own }, { layout, tpSize, ppSize, pipeline }) === "";
  }

  #shape({ tpSize, ppSize, pipeline, dpRank }: ParallelSizes): PeerShape {
    const key = `${tpSize} ${ppSize} ${dpRank ?? 0} ${pipeline ?? ""}`;
    let shape = this.#shapes.get(key);
    if (shape === undefined) {
      if (this.#shapes.size >= SHAPES_LIMIT) this.#shapes.clear();
      shape = { read: new Map(), given: new Map() };
      this.#shapes.set(key, shape);
    }
    return shape;
  }

  #holds(instance: ParallelSizes): boolean {
    try {
      shareOf(this.#layout, { ...sizesOf(instance), tpRank: 0, ppRank: 0 });
      return true;
    } catch {
      return false;
    }
  }
}

/** Of whatever names them, a frame or a state: these alone. */
const sizesOf = ({ tpSize, ppSize, pipeline, dpRank }: ParallelSizes): ParallelSizes => ({
  tpSize,
  ppSize,
  pipeline,
  dpRank,
});
