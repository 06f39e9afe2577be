import { type Epoch, requestId } from "../../../src/ids.ts";
import { BlockPool } from "../../../src/kv/pool.ts";
import type { Offer } from "../../../src/transceiver/offer.ts";
import { Offers, type OffersOptions } from "../../../src/transceiver/offers.ts";
import { VirtualPlane } from "./virtual_plane.ts";

type Chosen = Pick<OffersOptions, "limits" | "maxOpen" | "write"> & Partial<Pick<OffersOptions, "ended">>;

export interface OffersRig {
  readonly plane: VirtualPlane;
  readonly pool: BlockPool;
  readonly offers: Offers;
  /** Of request 1: `tokens` in four blocks, `ready` of them computed. */
  offer(tokens: number, ready: number, layers?: { readonly from: number; readonly to: number }): Offer;
}

/** The offers of one sender over a virtual plane and a pool of 8 blocks of 32 tokens. */
export function offersRig(epoch: Epoch, { ended = () => {}, ...chosen }: Chosen): OffersRig {
  const plane = new VirtualPlane();
  const pool = new BlockPool({ blocks: 8, blockBytes: 64 });
  const offers = new Offers({
    plane,
    epoch,
    tokensPerBlock: 32,
    countDropped: () => {},
    ended,
    observer: undefined,
    ...chosen,
  });
  const offer = (tokens: number, ready: number, layers = { from: 0, to: 4 }): Offer => {
    const blocks = pool.allocate(4);
    const added = offers.add({ requestId: requestId(1), tokens, blocks, ready, layers });
    blocks.release();
    return added;
  };
  return { plane, pool, offers, offer };
}
