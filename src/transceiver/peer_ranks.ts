import type { Layout } from "../kv/layout.ts";
import {
  commonOf,
  neededRanks,
  type Parallel,
  type ParallelSizes,
  placeOf,
  type RankShare,
  rankOf,
  readersOf,
  shareOf,
  unneededRanks,
} from "../kv/ranks.ts";

/** Ranks of one instance; more are no instance of ours. */
export const RANKS_LIMIT = 1024;

interface Sources {
  /** To pull from, in rank order. */
  readonly needed: readonly number[];
  /** Nobody reads these; they hear it from this rank. */
  readonly unneeded: readonly number[];
}

const key = ({ tpSize, ppSize }: ParallelSizes): number => tpSize * (RANKS_LIMIT + 1) + ppSize;
const isInstance = ({ tpSize, ppSize }: ParallelSizes): boolean =>
  tpSize >= 1 && ppSize >= 1 && tpSize * ppSize <= RANKS_LIMIT;

/** What this rank has to do with the ranks of other instances of the same model, worked out once for each shape of instance. */
export class PeerRanks {
  readonly #layout: Layout;
  readonly #own: Parallel;
  readonly #sources = new Map<number, Sources>();
  readonly #readers = new Map<number, readonly number[]>();

  constructor(layout: Layout, own: Parallel) {
    this.#layout = layout;
    this.#own = own;
  }

  /** @throws KvError INVALID_ARGUMENT when the model can't be spread like that */
  sources({ tpSize, ppSize }: ParallelSizes): Sources {
    const sender = { tpSize, ppSize };
    let sources = this.#sources.get(key(sender));
    if (sources === undefined) {
      const needed = neededRanks(this.#layout, this.#own, sender);
      const own = rankOf(this.#own);
      const unneeded = unneededRanks(this.#layout, this.#own, sender).filter((rank) =>
        readersOf(this.#layout, placeOf(rank, sender), this.#own).includes(own),
      );
      sources = { needed, unneeded };
      this.#sources.set(key(sender), sources);
    }
    return sources;
  }

  /** What this rank and one of another instance both hold. */
  common(rank: number, { tpSize, ppSize }: ParallelSizes): RankShare {
    return commonOf(shareOf(this.#layout, this.#own), shareOf(this.#layout, placeOf(rank, { tpSize, ppSize })));
  }

  /** The ranks that end this rank's offer; none when the model can't be spread like that. */
  readers({ tpSize, ppSize }: ParallelSizes): readonly number[] {
    const reader = { tpSize, ppSize };
    if (!isInstance(reader)) return [];
    let readers = this.#readers.get(key(reader));
    if (readers === undefined) {
      readers = this.#holds(reader) ? readersOf(this.#layout, this.#own, reader) : [];
      this.#readers.set(key(reader), readers);
    }
    return readers;
  }

  #holds(instance: ParallelSizes): boolean {
    try {
      shareOf(this.#layout, { ...instance, tpRank: 0, ppRank: 0 });
      return true;
    } catch {
      return false;
    }
  }
}
