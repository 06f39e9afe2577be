import { beforeEach, describe, expect, it } from "vitest";
import {
  type Epoch,
  newEpoch,
  newToken,
  newTransferId,
  nextAttempt,
  requestId,
  type TransferId,
} from "../../../src/ids.ts";
import type { BlockPool } from "../../../src/kv/pool.ts";
import type { Offer } from "../../../src/transceiver/offer.ts";
import type { Offers } from "../../../src/transceiver/offers.ts";
import type { FrameOf, SenderFrame } from "../../../src/transceiver/protocol.ts";
import { type OffersRig, offersRig } from "./offers_rig.ts";
import type { VirtualPlane } from "./virtual_plane.ts";

const LEASE_MS = 1_000;
const OFFER_MS = 3_000;
const TOKENS = 100;
const epoch = newEpoch();
const readers = [newEpoch(), newEpoch(), newEpoch()] as const;
type Rank = 0 | 1 | 2;

let rig: OffersRig;
let plane: VirtualPlane;
let pool: BlockPool;
let offers: Offers;
let written: { readonly to: Epoch; readonly frame: SenderFrame }[];
let ends: (string | null)[];

beforeEach(() => {
  written = [];
  ends = [];
  rig = offersRig(epoch, {
    limits: { leaseMs: LEASE_MS, transferMs: null, offerMs: OFFER_MS },
    maxOpen: 4,
    write: (to, frame) => {
      written.push({ to, frame });
      return true;
    },
    ended: (_offer, _report, error) => ends.push(error?.code ?? null),
  });
  ({ plane, pool, offers } = rig);
});

const offered = (ready = TOKENS): Offer => rig.offer(TOKENS, ready);

/** A rank of an instance with three ranks, all of which read this one. */
function pull(
  offer: Offer,
  rank: Rank,
  id = newTransferId(),
  { token = offer.token, instance = "generation", epochs = readers } = {},
): TransferId {
  const range = { from: 0, to: TOKENS, reader: { rank, tpSize: 3, ppSize: 1 }, paths: ["shared_memory"] };
  const head = { type: "PULL", se: epoch, re: epochs[rank], transferId: id } as const;
  offers.pull(
    epochs[rank],
    { ...head, requestId: requestId(1), token, ...range },
    { sameLayout: true, ranks: [0, 1, 2], isMember: false, instance },
  );
  plane.advance(0);
  return id;
}

function done(rank: Rank, transferId: TransferId, status: FrameOf<"DONE">["status"] = "ok"): void {
  const re = readers[rank];
  offers.done(re, { type: "DONE", se: epoch, re, transferId, status, bytes: 100 * (rank + 1) });
}

const renew = (rank: Rank, ...ids: TransferId[]): void =>
  offers.renew(readers[rank], { type: "RENEW", se: epoch, re: readers[rank], seq: 1, ids });

/** What a rank was told since the last look. */
function told(rank: Rank): string[] {
  const own = written.filter(({ to }) => to === readers[rank]);
  written = written.filter(({ to }) => to !== readers[rank]);
  return own.map(({ frame }) => ("code" in frame ? `${frame.type} ${frame.code}` : frame.type));
}

function expectReleased(code: string | null): void {
  expect(ends).toEqual([code]);
  expect(pool.free).toBe(8);
  expect(plane.holds).toBe(0);
  expect(offers.open).toBe(0);
}

describe("an offer that three ranks read", () => {
  it("keeps its blocks until the last of them is done, and reports all bytes", async () => {
    const offer = offered();
    for (const rank of [1, 0, 2] as const) done(rank, pull(offer, rank));
    expectReleased(null);
    expect(await offer.done).toMatchObject({ bytes: 600, tokens: TOKENS, blocks: 4 });
  });

  it("keeps them while one still reads, whatever the others' leases do", () => {
    const offer = offered();
    const ids = ([0, 1, 2] as const).map((rank) => pull(offer, rank)) as [TransferId, TransferId, TransferId];
    for (let step = 0; step < 6; step++) {
      plane.advance(LEASE_MS / 2);
      renew(1, ids[1]);
      plane.advance(0);
    }
    expect(pool.free).toBe(4);
    done(1, ids[1]);
    // The other two leases ran out long ago: their readers may have it all, so nothing was taken from the third.
    expectReleased("LEASE_EXPIRED");
  });

  it("waits for a reader that never pulls no longer than for one that fetches nothing", () => {
    const offer = offered();
    done(0, pull(offer, 0));
    done(2, pull(offer, 2));
    plane.advance(OFFER_MS - 1);
    expect(pool.free).toBe(4);
    plane.advance(1);
    expectReleased("OFFER_EXPIRED");
  });

  it("ends for all when one of them fails: who has not pulled hears GONE, who reads hears ABORT and answers", () => {
    const offer = offered();
    const [first, second] = [pull(offer, 0), pull(offer, 1)];
    done(0, first, "failed");
    expect(told(1)).toEqual(["GRANT", "ABORT CANCELLED"]);
    expect(pool.free).toBe(4);
    pull(offer, 2);
    expect(told(2)).toEqual(["REFUSE GONE"]);
    done(1, second, "cancelled");
    expectReleased("RECEIVER_FAILED");
  });

  it("is complete for nobody's sake when one was cancelled after another was done", async () => {
    const offer = offered();
    done(0, pull(offer, 0));
    const second = pull(offer, 1);
    expect(offer.cancel("test")).toBe("in_flight");
    done(1, second, "ok");
    expectReleased("CANCELLED");
    await expect(offer.done).rejects.toMatchObject({ code: "CANCELLED" });
    expect(offer.cancel("again")).toBe("already_complete");
  });

  it("is free at once when it is cancelled and nobody reads", () => {
    const offer = offered();
    done(0, pull(offer, 0));
    expect(offer.cancel("test")).toBe("cancelled");
    expectReleased("CANCELLED");
  });

  it("tells each reader how far prefill has come, also one whose session began in the middle", () => {
    const offer = offered(10);
    pull(offer, 0);
    offer.ready(50);
    pull(offer, 1);
    expect(told(0)).toEqual(["GRANT", "READY"]);
    expect(written.find(({ frame }) => frame.type === "GRANT")?.frame).toMatchObject({ ready: 50 });
    offer.ready(TOKENS);
    expect(told(1)).toEqual(["GRANT", "READY"]);
  });

  it("takes a retry of one reader and changes nothing for the others", () => {
    const offer = offered();
    const [first, second] = [pull(offer, 0), pull(offer, 1)];
    offers.hello(readers[0], []);
    const again = pull(offer, 0, nextAttempt(first));
    expect(told(0)).toEqual(["GRANT", "GRANT"]);
    expect(told(1)).toEqual(["GRANT"]);
    done(0, again);
    done(1, second);
    done(2, pull(offer, 2));
    expectReleased(null);
  });

  it("takes the HELLO of a reader that is done while others still read", () => {
    const offer = offered();
    done(0, pull(offer, 0));
    const second = pull(offer, 1);
    offers.hello(readers[0], []);
    done(1, second);
    done(2, pull(offer, 2));
    expectReleased(null);
  });

  it("serves the ranks of one instance only, so that it is complete where one instance has it all", () => {
    const offer = offered();
    const others = [newEpoch(), newEpoch(), newEpoch()] as const;
    const foreign = { instance: "another", epochs: others };
    const first = pull(offer, 0);
    pull(offer, 1, newTransferId(), foreign);
    expect(written.at(-1)).toMatchObject({ to: others[1], frame: { code: "BUSY", retryAfterMs: LEASE_MS } });
    done(0, first);
    pull(offer, 0, newTransferId(), foreign);
    expect(written.at(-1)).toMatchObject({ to: others[0], frame: { code: "GONE" } });
    for (const rank of [1, 2] as const) done(rank, pull(offer, rank));
    expectReleased(null);
  });

  it("serves another instance when nobody of the first one reads any more", () => {
    const offer = offered();
    pull(offer, 0);
    offers.hello(readers[0], []);
    const others = [newEpoch(), newEpoch(), newEpoch()] as const;
    for (const rank of [0, 1, 2] as const) {
      const id = pull(offer, rank, newTransferId(), { instance: "another", epochs: others });
      const re = others[rank];
      offers.done(re, { type: "DONE", se: epoch, re, transferId: id, status: "ok", bytes: 1 });
    }
    expectReleased(null);
  });

  it("learns who reads from a right PULL only", () => {
    const offer = offered();
    pull(offer, 1, newTransferId(), { token: newToken() });
    expect(told(1)).toEqual(["REFUSE BAD_TOKEN"]);
    expect(offer.sessions).toHaveLength(1);
    pull(offer, 1);
    expect(offer.sessions).toHaveLength(3);
  });

  it("tells the same rank of another instance that it is busy, and the first one's sessions stay", () => {
    const offer = offered();
    const id = pull(offer, 0);
    const stranger = newEpoch();
    const range = { from: 0, to: TOKENS, reader: { rank: 0, tpSize: 1, ppSize: 1 }, paths: [] };
    const head = { type: "PULL", se: epoch, re: stranger, transferId: newTransferId() } as const;
    const frame = { ...head, requestId: requestId(1), token: offer.token, ...range };
    offers.pull(stranger, frame, { sameLayout: true, ranks: [0], isMember: false, instance: "other" });
    expect(written.at(-1)).toMatchObject({ to: stranger, frame: { type: "REFUSE", code: "BUSY" } });
    done(0, id);
    for (const rank of [1, 2] as const) done(rank, pull(offer, rank));
    expectReleased(null);
  });
});
