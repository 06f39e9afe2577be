import { beforeEach, describe, expect, it } from "vitest";
import { newEpoch, newTransferId, requestId } from "../../../src/ids.ts";
import type { Offer } from "../../../src/transceiver/offer.ts";
import type { FrameOf, SenderFrame } from "../../../src/transceiver/protocol.ts";
import { type OffersRig, offersRig } from "./offers_rig.ts";

const TOKENS = 100;
const epoch = newEpoch();
const readers = [newEpoch(), newEpoch()] as const;
const isReady = (frame: SenderFrame): frame is FrameOf<"READY"> => frame.type === "READY";

let rig: OffersRig;
let written: { readonly to: string; readonly frame: SenderFrame }[];
beforeEach(() => {
  written = [];
  rig = offersRig(epoch, {
    limits: { leaseMs: 1_000, transferMs: null, offerMs: 3_000 },
    maxOpen: 4,
    write: (to, frame) => {
      written.push({ to, frame });
      return true;
    },
  });
});

/** @param readyIn what the PULL says; undefined: that of an older version */
function pull(offer: Offer, rank: 0 | 1, readyIn?: "tokens" | "layers"): void {
  const re = readers[rank];
  const head = { type: "PULL", se: epoch, re, transferId: newTransferId(), requestId: requestId(1) } as const;
  const range = { from: 0, to: TOKENS, reader: { rank, tpSize: 2, ppSize: 1 }, paths: ["shared_memory"] };
  rig.offers.pull(
    re,
    { ...head, token: offer.token, ...range, ...(readyIn === undefined ? {} : { readyIn }) },
    { sameLayout: true, ranks: [0, 1], isMember: false, instance: "generation" },
  );
  rig.plane.advance(0);
}

/** Tokens and layers of each READY that a rank was sent. */
const told = (rank: 0 | 1) =>
  written
    .filter(({ to }) => to === readers[rank])
    .map(({ frame }) => frame)
    .filter(isReady)
    .map(({ tokens, layers }) => [tokens, layers]);

describe("an offer whose prefill tells of layers", () => {
  it("says so to readers that can take them, and of whole tokens to the others", () => {
    const offer = rig.offer(TOKENS, 10);
    pull(offer, 0, "layers");
    pull(offer, 1);
    for (const layers of [1, 3, 4]) offer.ready(50, layers);
    expect(told(0)).toEqual([
      [50, 1],
      [50, 3],
      [50, undefined],
    ]);
    expect(told(1)).toEqual([[50, undefined]]);
    // The whole chunk was told.
    offer.ready(50, 2);
    offer.ready(50);
    expect(told(0).length).toBe(3);
  });

  it("tells a reader that comes in the middle of a chunk behind its GRANT", () => {
    const offer = rig.offer(TOKENS, 0);
    pull(offer, 0, "layers");
    offer.ready(50, 2);
    pull(offer, 1, "layers");
    expect(told(1)).toEqual([[50, 2]]);
    offer.ready(50);
    offer.ready(TOKENS, 1);
    offer.finish({ firstTokens: [1] });
    expect(told(1)).toEqual([
      [50, 2],
      [50, undefined],
      [TOKENS, 1],
    ]);
    expect(written.at(-1)?.frame.type).toBe("FINISHED");
  });

  it("counts as its stage does: nothing before its first layer, all with its last", () => {
    const offer = rig.offer(TOKENS, 0, { from: 2, to: 4 });
    pull(offer, 0, "layers");
    pull(offer, 1, "tokens");
    for (const layers of [1, 2]) offer.ready(50, layers);
    expect([told(0), told(1)]).toEqual([[], []]);
    for (const layers of [3, 4, 5]) offer.ready(50, layers);
    expect(told(0)).toEqual([
      [50, 3],
      [50, undefined],
    ]);
    expect(told(1)).toEqual([[50, undefined]]);
  });
});
