import { KvError } from "../errors.ts";
import type { CapabilityToken } from "../ids.ts";
import type { ParallelSizes } from "../kv/ranks.ts";
import type { ReceiveTransfer } from "./api.ts";
import type { DialTarget } from "./dial.ts";
import { joinReceives } from "./joined_transfers.ts";
import type { OpaqueState } from "./opaque_state.ts";
import type { PeerRanks } from "./peer_ranks.ts";
import type { Pulls } from "./pulls.ts";
import type { WantedOffer } from "./receiver_house.ts";

/** A rank to pull from. */
export interface Source {
  readonly rank: number;
  readonly target: DialTarget;
  /** null: it has made no offer yet. */
  readonly token: CapabilityToken | null;
}

export const sourcesOf = ({ instance: name, ranks }: OpaqueState): Source[] =>
  ranks.map(({ rank, token, epoch, tcp, unix }) => ({ rank, token, target: { name, epoch, tcp, unix } }));

/** @throws KvError BAD_STATE */
function sourceOf(sources: readonly Source[], wanted: number): Source {
  const found = sources.find(({ rank }) => rank === wanted);
  if (found === undefined) throw new KvError("BAD_STATE", { why: `rank ${wanted}, which holds a part, is missing` });
  return found;
}

/** One transfer out of the pulls from each rank of a peer. */
export class RankedPulls {
  readonly #pulls: Pulls;
  readonly #peerRanks: PeerRanks;

  constructor(pulls: Pulls, peerRanks: PeerRanks) {
    this.#pulls = pulls;
    this.#peerRanks = peerRanks;
  }

  /** From each rank that holds a part of what this one needs. */
  pull(
    sources: readonly Source[],
    sizes: ParallelSizes,
    offer: Omit<WantedOffer, "token">,
    signal: AbortSignal | undefined,
  ): ReceiveTransfer {
    const { needed, unneeded } = this.#peerRanks.sources(sizes);
    const { requestId, peer, tokens, skipTokens, blocks } = offer;
    // All are found before any is asked.
    const found = needed.map((rank) => sourceOf(sources, rank));
    const [first, ...rest] = found.map(({ rank, token, target }) => {
      const part = this.#peerRanks.partFrom(rank, sizes);
      return this.#start({ requestId, token, peer, tokens, skipTokens, blocks, part }, target, signal);
    });
    if (first === undefined) throw new KvError("INTERNAL", { where: "receive", why: "no rank holds a part" });
    const receiving = joinReceives([first, ...rest]);
    // Copies that no rank of this side needs are told so by a pull of nothing: they let their blocks go now, not by their timer.
    using nothing = offer.blocks.share(0, 0);
    for (const { token, target } of sources.filter(({ rank }) => unneeded.includes(rank))) {
      const word = this.#start({ ...offer, token, blocks: nothing, skipTokens: offer.tokens }, target);
      // Without an offer there is nothing to let go yet.
      if (token === null) receiving.done.catch(() => word.cancel("what it belongs to has ended"));
    }
    return receiving;
  }

  /** Tells each rank that counts on this one's pull that there will be none. */
  decline(sources: readonly Source[], sizes: ParallelSizes, offer: Omit<WantedOffer, "token" | "skipTokens">): void {
    const { needed, unneeded } = this.#peerRanks.sources(sizes);
    for (const { rank, token, target } of sources) {
      if (!needed.includes(rank) && !unneeded.includes(rank)) continue;
      this.#start({ ...offer, token, skipTokens: offer.tokens }, target).cancel("nobody wants it any more");
    }
  }

  /** From one rank. */
  #start(offer: WantedOffer, target: DialTarget, signal?: AbortSignal): ReceiveTransfer {
    const session = this.#pulls.start(offer, target, signal);
    return {
      requestId: offer.requestId,
      tokens: offer.tokens,
      done: session.done,
      released: session.released,
      progress: session.progress,
      cancel: (reason = "the receiver's caller cancelled it") => session.cancel(reason),
    };
  }
}
