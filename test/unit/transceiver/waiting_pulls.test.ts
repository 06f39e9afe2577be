import { beforeEach, describe, expect, it } from "vitest";
import { newEpoch, newTransferId, nextAttempt, requestId, type TransferId } from "../../../src/ids.ts";
import type { BlockPool } from "../../../src/kv/pool.ts";
import type { Offer } from "../../../src/transceiver/offer.ts";
import type { Offers } from "../../../src/transceiver/offers.ts";
import type { FrameOf, SenderFrame } from "../../../src/transceiver/protocol.ts";
import { type OffersRig, offersRig } from "./offers_rig.ts";
import type { VirtualPlane } from "./virtual_plane.ts";

const LEASE_MS = 1_000;
const OFFER_MS = 3_000;
const TOKENS = 100;
const MAX_OPEN = 4;
const epoch = newEpoch();
const reader = newEpoch();
const id = newTransferId();

let rig: OffersRig;
let plane: VirtualPlane;
let pool: BlockPool;
let offers: Offers;
let written: SenderFrame[];

beforeEach(() => {
  written = [];
  rig = offersRig(epoch, {
    limits: { leaseMs: LEASE_MS, transferMs: 10_000, offerMs: OFFER_MS },
    maxOpen: MAX_OPEN,
    write: (_receiver, frame) => {
      written.push(frame);
      return true;
    },
  });
  ({ plane, pool, offers } = rig);
});

const offer = (ready = 0): Offer => rig.offer(TOKENS, ready);

interface PullOptions {
  readonly receiver?: typeof reader;
  readonly isMember?: boolean;
  readonly sameLayout?: boolean;
  readonly request?: number;
  readonly rank?: number;
}

function pull(transferId: TransferId = id, options: PullOptions = {}): void {
  const { receiver = reader, isMember = true, sameLayout = true, request = 1, rank = 0 } = options;
  const range = { from: 0, to: TOKENS, reader: { rank, tpSize: 2, ppSize: 1 }, paths: ["shared_memory"] };
  const head = { type: "PULL", se: epoch, re: receiver, transferId } as const;
  const side = { sameLayout, ranks: [0], isMember, instance: "generation" };
  offers.pull(receiver, { ...head, requestId: requestId(request), ...range }, side);
}
const renew = (seq: number, ...ids: TransferId[]): void =>
  offers.renew(reader, { type: "RENEW", se: epoch, re: reader, seq, ids });
const done = (transferId: TransferId, status: FrameOf<"DONE">["status"]): void =>
  offers.done(reader, { type: "DONE", se: epoch, re: reader, transferId, status, bytes: 0 });
const types = (): string[] =>
  written.splice(0).map((frame) => ("code" in frame ? `${frame.type} ${frame.code}` : frame.type));
const last = (): SenderFrame | undefined => written.at(-1);

describe("a PULL without a token", () => {
  it("waits without an answer, and is granted in the turn in which the offer is made", () => {
    pull();
    expect(written).toEqual([]);
    expect(offers.waiting.open).toBe(1);
    offer();
    expect(last()).toMatchObject({ type: "GRANT", transferId: id, re: reader, seq: 0, ready: 0 });
    expect(offers.waiting.open).toBe(0);
    expect(plane.holds).toBe(1);
  });

  it("of somebody who has not proven to be of the cluster is refused, offer or none", () => {
    pull(id, { isMember: false });
    offer();
    pull(id, { isMember: false });
    expect(types()).toEqual(["REFUSE BAD_TOKEN", "REFUSE BAD_TOKEN"]);
    expect(offers.waiting.open).toBe(0);
  });

  it("is granted at once when the offer stands", () => {
    offer(40);
    pull();
    expect(last()).toMatchObject({ type: "GRANT", ready: 40 });
  });

  it("is told as waiting by RENEWED, and its GRANT names the RENEW heard last", () => {
    pull();
    renew(7, id, newTransferId());
    expect(last()).toMatchObject({ type: "RENEWED", seq: 7, ids: [], waiting: [id] });
    offer();
    expect(last()).toMatchObject({ type: "GRANT", seq: 7 });
    renew(8, id);
    plane.advance(0);
    expect(last()).toMatchObject({ type: "RENEWED", seq: 8, ids: [id], waiting: [] });
  });

  it("that waited longer than a lease has a whole one from its GRANT", () => {
    pull();
    plane.advance(2 * LEASE_MS);
    offer(TOKENS);
    types();
    plane.advance(LEASE_MS - 1);
    expect(types()).toEqual([]);
    plane.advance(1);
    expect(types()).toEqual(["ABORT LEASE_EXPIRED"]);
  });

  it("is replaced by a higher attempt, which has been heard by no RENEW yet, and by another receiver's", () => {
    pull();
    renew(3, id);
    const again = nextAttempt(id);
    pull(again);
    pull(id);
    types();
    renew(4, id);
    expect(last()).toMatchObject({ waiting: [] });
    const other = newEpoch();
    const theirs = newTransferId();
    pull(theirs, { receiver: other });
    renew(5, again);
    expect(last()).toMatchObject({ waiting: [] });
    offer();
    expect(last()).toMatchObject({ type: "GRANT", transferId: theirs, re: other, seq: 0 });
  });

  it("is forgotten when its receiver ends it, or does not name it in HELLO", () => {
    pull();
    done(id, "cancelled");
    pull();
    offers.hello(reader, [id]);
    expect(offers.waiting.open).toBe(1);
    offers.hello(newEpoch(), []);
    expect(offers.waiting.open).toBe(1);
    offers.hello(reader, []);
    expect(offers.waiting.open).toBe(0);
    offer();
    expect(types()).toEqual([]);
  });

  it("waits for a limited time", () => {
    pull();
    plane.advance(OFFER_MS - 1);
    expect(types()).toEqual([]);
    plane.advance(1);
    expect(types()).toEqual(["REFUSE QUEUE_TIMEOUT"]);
    expect(offers.waiting.open).toBe(0);
    offer();
    plane.advance(OFFER_MS);
    expect(types()).toEqual([]);
  });

  it("is refused when there will be no offer, also when it comes after that is known", () => {
    pull();
    offers.waiting.refuse(requestId(1));
    expect(types()).toEqual(["REFUSE GONE"]);
    pull();
    expect(types()).toEqual(["REFUSE GONE"]);
    pull(newTransferId(), { request: 2 });
    expect(types()).toEqual([]);
    // The id is used again: this offer is there.
    offer();
    pull();
    expect(types()).toEqual(["GRANT"]);
  });

  it("of an offer that has ended is refused", () => {
    offer().cancel("test");
    pull();
    expect(types()).toEqual(["REFUSE GONE"]);
  });

  it("is refused by a side that drains, waiting or new", () => {
    pull();
    offers.cancelAll("closing");
    pull(newTransferId(), { request: 2 });
    expect(types()).toEqual(["REFUSE DRAINING", "REFUSE DRAINING"]);
  });

  it("with another layout is refused and does not take the place of one that waits", () => {
    pull(newTransferId(), { sameLayout: false, request: 2 });
    pull();
    pull(newTransferId(), { sameLayout: false });
    expect(types()).toEqual(["REFUSE LAYOUT", "REFUSE LAYOUT"]);
    offer();
    expect(last()).toMatchObject({ type: "GRANT", transferId: id });
  });

  it("is one of a bounded number", () => {
    for (let request = 1; request <= MAX_OPEN; request++) pull(newTransferId(), { request });
    pull(newTransferId(), { request: 100 });
    expect(last()).toMatchObject({ type: "REFUSE", code: "BUSY", retryAfterMs: 1000 });
    expect(offers.waiting.open).toBe(MAX_OPEN);
  });

  it("waits for each reader rank by itself", () => {
    pull(id, { rank: 0 });
    pull(newTransferId(), { rank: 1 });
    expect(offers.waiting.open).toBe(2);
    done(id, "cancelled");
    expect(offers.waiting.open).toBe(1);
  });
});

describe("who waits for a PULL", () => {
  it("hears of it at once, whether it is there already or comes", async () => {
    const soon = offers.waiting.arrival(requestId(1), undefined);
    pull();
    await soon;
    await offers.waiting.arrival(requestId(1), undefined);
  });

  it("waits for a limited time, and no longer than its signal and this side allow", async () => {
    const late = offers.waiting.arrival(requestId(1), undefined);
    plane.advance(OFFER_MS);
    await expect(late).rejects.toMatchObject({ code: "QUEUE_TIMEOUT" });
    const leave = new AbortController();
    const left = offers.waiting.arrival(requestId(1), leave.signal);
    leave.abort(new Error("client left"));
    await expect(left).rejects.toThrow("client left");
    await expect(offers.waiting.arrival(requestId(1), leave.signal)).rejects.toThrow("client left");
    const closed = offers.waiting.arrival(requestId(1), undefined);
    offers.cancelAll("closing");
    await expect(closed).rejects.toMatchObject({ code: "CLOSED" });
  });
});

describe("FINISHED", () => {
  const first = { firstTokens: [42], firstLogProbs: [{ logprob: -0.5 }], cachedTokens: 32 };

  it("ends the prefill in one frame with the last tokens", () => {
    pull();
    const added = offer();
    added.ready(50);
    added.finish(first);
    added.finish({ firstTokens: [1] });
    expect(written.map(({ type }) => type)).toEqual(["GRANT", "READY", "FINISHED"]);
    expect(last()).toMatchObject({ transferId: id, tokens: TOKENS, ...first });
    done(id, "ok");
    expect(pool.free).toBe(8);
  });

  it("comes again with the GRANT of every later attempt", () => {
    pull();
    const added = offer();
    added.finish(first);
    types();
    pull(nextAttempt(id));
    expect(types()).toEqual(["GRANT", "FINISHED"]);
    offers.hello(reader, []);
    pull(newTransferId());
    expect(types()).toEqual(["GRANT", "FINISHED"]);
  });

  it("starts the offer timer when nobody reads", () => {
    const added = offer();
    added.finish(first);
    plane.advance(OFFER_MS);
    expect(pool.free).toBe(8);
    added.finish(first);
    added.ready(TOKENS);
  });

  it("of an offer that is ending changes nothing", () => {
    pull();
    const added = offer();
    added.cancel("test");
    types();
    added.finish(first);
    expect(types()).toEqual([]);
    done(id, "cancelled");
    added.finish(first);
    expect(pool.free).toBe(8);
  });
});
