import { beforeEach, describe, expect, it } from "vitest";
import { newEpoch, newToken, newTransferId, nextAttempt, requestId, type TransferId } from "../../../src/ids.ts";
import type { BlockPool } from "../../../src/kv/pool.ts";
import type { Offer } from "../../../src/transceiver/offer.ts";
import type { Offers } from "../../../src/transceiver/offers.ts";
import type { FrameOf, SenderFrame } from "../../../src/transceiver/protocol.ts";
import { rangesToVerify, type VerifyMode } from "../../../src/transceiver/verification.ts";
import { type OffersRig, offersRig } from "./offers_rig.ts";
import type { VirtualPlane } from "./virtual_plane.ts";

const LEASE_MS = 1_000;
const OFFER_MS = 3_000;
const TRANSFER_MS = 4_000;
const TOKENS = 100;
const epoch = newEpoch();
const reader = newEpoch();

let rig: OffersRig;
let plane: VirtualPlane;
let pool: BlockPool;
let offers: Offers;
let written: SenderFrame[];
let ends: (string | null)[];

beforeEach(() => {
  written = [];
  ends = [];
  rig = offersRig(epoch, {
    limits: { leaseMs: LEASE_MS, transferMs: TRANSFER_MS, offerMs: OFFER_MS },
    maxOpen: 64,
    write: (_receiver, frame) => {
      written.push(frame);
      return true;
    },
    ended: (_session, _report, error) => ends.push(error?.code ?? null),
  });
  ({ plane, pool, offers } = rig);
});

const offer = (ready = TOKENS): Offer => rig.offer(TOKENS, ready);

function pull(
  session: Offer,
  transferId: TransferId,
  receiver = reader,
  token = session.token,
  verify: VerifyMode = "off",
  from = 0,
): void {
  const range = { from, to: TOKENS, reader: { rank: 0, tpSize: 1, ppSize: 1 }, paths: ["shared_memory"], verify };
  const head = { type: "PULL", se: epoch, re: receiver, transferId } as const;
  offers.pull(
    receiver,
    { ...head, requestId: requestId(1), token, ...range },
    { sameLayout: true, ranks: [0], isMember: false, instance: "generation" },
  );
}

const done = (transferId: TransferId, status: FrameOf<"DONE">["status"] = "ok"): void =>
  offers.done(reader, { type: "DONE", se: epoch, re: reader, transferId, status, bytes: 6400 });
const renew = (seq: number, ...ids: TransferId[]): void =>
  offers.renew(reader, { type: "RENEW", se: epoch, re: reader, seq, ids });
const types = (): string[] =>
  written.splice(0).map((frame) => ("code" in frame ? `${frame.type} ${frame.code}` : frame.type));

/** Every block is free, once, and Node may end. */
function expectReleased(code: string | null): void {
  expect(ends).toEqual([code]);
  expect(pool.free).toBe(8);
  expect(plane.holds).toBe(0);
}

describe("an offer on a virtual clock", () => {
  it("is pinned until nobody has fetched it in time", () => {
    offer();
    plane.advance(OFFER_MS - 1);
    expect(pool.free).toBe(4);
    plane.advance(1);
    expectReleased("OFFER_EXPIRED");
  });

  it("is granted at once; the digests that the pull asks for follow when they are there, whichever comes first", () => {
    const growing = offer(70);
    const id = newTransferId();
    pull(growing, id, reader, growing.token, "full");
    expect(types()).toEqual(["GRANT"]);
    growing.ready(TOKENS);
    expect(types()).toEqual(["READY"]);
    expect(plane.digests.map(({ ranges }) => ranges)).toEqual([
      [0, 32, 32, 64],
      [64, 96, 96, 100],
    ]);
    plane.digests[1]?.done(new Uint8Array(16).fill(2));
    plane.digests[0]?.done(new Uint8Array(16).fill(1));
    expect(written.splice(0)).toMatchObject([
      { type: "READY", transferId: id, tokens: TOKENS, digestsFrom: 2, digests: new Uint8Array(16).fill(2) },
      { type: "READY", transferId: id, tokens: TOKENS, digestsFrom: 0, digests: new Uint8Array(16).fill(1) },
    ]);
    done(id);
    expectReleased(null);
  });

  it("tells digests to the attempt that asked for them alone", () => {
    const whole = offer();
    const id = newTransferId();
    pull(whole, id, reader, whole.token, "full");
    pull(whole, nextAttempt(id), reader, whole.token, "full");
    expect(types()).toEqual(["GRANT", "GRANT"]);
    plane.digests[0]?.done(new Uint8Array(32));
    expect(types()).toEqual([]);
    plane.digests[1]?.done(new Uint8Array(32));
    expect(types()).toEqual(["READY"]);
    done(nextAttempt(id));
    expectReleased(null);
  });

  it("digests exactly what the pull compares: none of it, a sample, or all of the tokens that move", () => {
    const whole = offer();
    const id = newTransferId();
    for (const [attempt, verify, from] of [
      [id, "off", 0],
      [nextAttempt(id), "sampled", 0],
      [nextAttempt(nextAttempt(id)), "full", 40],
    ] as const) {
      const asked = plane.digests.length;
      pull(whole, attempt, reader, whole.token, verify, from);
      const ranges = rangesToVerify(verify, attempt, { from, to: TOKENS, tokensPerBlock: 32 });
      expect(plane.digests.slice(asked).flatMap((digest) => digest.ranges)).toEqual([...ranges]);
    }
    expect(plane.digests.at(-1)?.ranges).toEqual([40, 64, 64, 96, 96, 100]);
    done(nextAttempt(nextAttempt(id)));
    expectReleased(null);
  });

  it("tells nobody digests that come after the end", () => {
    const whole = offer();
    const id = newTransferId();
    pull(whole, id, reader, whole.token, "full");
    done(id, "cancelled");
    written.splice(0);
    plane.digests[0]?.done(new Uint8Array(32));
    expect(written).toEqual([]);
    expect([pool.free, plane.holds]).toEqual([8, 0]);
  });

  it("does not expire while its prefill runs", () => {
    const session = offer(10);
    plane.advance(10 * OFFER_MS);
    session.ready(TOKENS);
    plane.advance(OFFER_MS - 1);
    expect(pool.free).toBe(4);
    plane.advance(1);
    expectReleased("OFFER_EXPIRED");
  });

  it("is granted in the turn of the PULL, and complete when the receiver says so", async () => {
    const session = offer();
    const id = newTransferId();
    pull(session, id);
    expect(types()).toEqual(["GRANT"]);
    done(id);
    expectReleased(null);
    expect(await session.done).toMatchObject({ bytes: 6400, attempts: 1 });
    done(id);
    expect(ends).toEqual([null]);
  });

  it("keeps its blocks for a whole lease from when the owner thread starts it, however late after GRANT", () => {
    const session = offer();
    plane.leaseStartMs = 5 * LEASE_MS - 1;
    pull(session, newTransferId());
    expect(types()).toEqual(["GRANT"]);
    plane.advance(TRANSFER_MS - 1);
    expect(session.sessions[0]?.state).toBe("GRANT");
    plane.advance(2 * LEASE_MS - 1);
    // The transfer timer wants to end it; its receiver may still read.
    expect(session.sessions[0]?.state).toBe("ENDING");
    expect(pool.free).toBe(4);
    plane.advance(1);
    expectReleased("TRANSFER_TIMEOUT");
  });

  it("keeps its blocks for as long as it is renewed, and no longer", () => {
    const session = offer();
    const id = newTransferId();
    pull(session, id);
    plane.advance(0);
    for (let seq = 1; seq < 4; seq++) {
      plane.advance(LEASE_MS - 1);
      renew(seq, id);
      plane.advance(0);
    }
    expect(types()).toEqual(["GRANT", "RENEWED", "RENEWED", "RENEWED"]);
    plane.advance(LEASE_MS - 1);
    expect(pool.free).toBe(4);
    plane.advance(1);
    expect(types()).toEqual(["ABORT LEASE_EXPIRED"]);
    expectReleased("LEASE_EXPIRED");
    renew(9, id);
    expect(written).toMatchObject([{ type: "RENEWED", seq: 9, ids: [] }]);
  });

  it("does not name a lease in RENEWED that has ended before its end was told", () => {
    const session = offer();
    const id = newTransferId();
    pull(session, id);
    plane.advance(0);
    plane.stop(LEASE_MS);
    written = [];
    renew(1, id);
    plane.advance(0);
    expect(written.find(({ type }) => type === "RENEWED")).toMatchObject({ ids: [] });
    expectReleased("LEASE_EXPIRED");
  });

  it("cancelled while it is read, waits for DONE and may still be complete", () => {
    const session = offer();
    const id = newTransferId();
    pull(session, id);
    plane.advance(0);
    expect(session.cancel("test")).toBe("in_flight");
    expect(types()).toEqual(["GRANT", "ABORT CANCELLED"]);
    expect(pool.free).toBe(4);
    renew(1, id);
    plane.advance(0);
    expect(written).toMatchObject([{ type: "RENEWED", ids: [] }]);
    done(id);
    expectReleased(null);
  });

  it("cancelled while it is read by someone silent, waits for the lease", () => {
    const session = offer();
    pull(session, newTransferId());
    plane.advance(0);
    session.cancel("test");
    plane.advance(LEASE_MS - 1);
    expect(pool.free).toBe(4);
    plane.advance(1);
    expectReleased("CANCELLED");
  });

  it("ends when the whole transfer takes too long, whatever is renewed; READY starts that time anew", () => {
    const session = offer(10);
    const id = newTransferId();
    pull(session, id);
    plane.advance(0);
    let seq = 0;
    const renewFor = (ms: number): void => {
      for (let spent = 0; spent < ms; spent += LEASE_MS / 2) {
        plane.advance(LEASE_MS / 2);
        renew(++seq, id);
        plane.advance(0);
      }
    };
    renewFor(TRANSFER_MS - LEASE_MS / 2);
    session.ready(50);
    renewFor(TRANSFER_MS - LEASE_MS / 2);
    expect(session.sessions[0]?.state).toBe("GRANT");
    renewFor(LEASE_MS / 2);
    expect(session.sessions[0]?.state).toBe("ENDING");
    renewFor(2 * LEASE_MS);
    expectReleased("TRANSFER_TIMEOUT");
  });

  it("leased to one receiver is BUSY for another, for the time that is left", () => {
    const session = offer();
    pull(session, newTransferId());
    plane.advance(400);
    written = [];
    pull(session, newTransferId(), newEpoch());
    expect(written).toMatchObject([{ type: "REFUSE", code: "BUSY", retryAfterMs: 600 }]);
  });

  it("is granted anew to a higher attempt, and the old attempt's DONE ends nothing", () => {
    const session = offer();
    const first = newTransferId();
    pull(session, first);
    plane.advance(900);
    const second = nextAttempt(first);
    pull(session, second);
    plane.advance(LEASE_MS - 1);
    done(first);
    expect(session.sessions[0]?.state).toBe("GRANT");
    pull(session, first);
    expect(types()).toEqual(["GRANT", "GRANT"]);
    done(second);
    expectReleased(null);
  });

  it("falls back to an offer when its receiver's epoch reads it no more, with a lease's time left for a retry", () => {
    const session = offer();
    const id = newTransferId();
    pull(session, id);
    plane.advance(0);
    // Another epoch's HELLO ends nothing; the reader's own without the id does, 10 ms before the offer would have expired.
    for (let seq = 1; seq <= 6; seq++) {
      plane.advance((OFFER_MS - 10) / 6);
      if (seq < 6) renew(seq, id);
      if (seq === 5) offers.hello(reader, [id]);
      if (seq === 6) offers.hello(newEpoch(), []);
      if (seq === 6) offers.hello(reader, []);
    }
    expect(session.sessions[0]?.state).toBe("OFFER");
    plane.advance(LEASE_MS - 1);
    pull(session, nextAttempt(id));
    plane.advance(0);
    done(nextAttempt(id));
    expectReleased(null);
  });

  it("refuses a wrong token, a closing side, and what it does not hold", () => {
    const session = offer();
    pull(session, newTransferId(), reader, newToken());
    expect(types()).toEqual(["REFUSE BAD_TOKEN"]);
    session.cancel("test");
    pull(session, newTransferId());
    expect(types()).toEqual(["REFUSE GONE"]);
    offers.cancelAll("closing");
    pull(session, newTransferId());
    expect(types()).toEqual(["REFUSE DRAINING"]);
    // So nothing is offered while it drains, and nothing needs a rule for that.
    expect(() => offer()).toThrow(/closed/);
  });
});
