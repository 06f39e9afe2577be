import { describe, expect, it } from "vitest";
import { LeaseView, renewalPeriodMs } from "../../../src/transceiver/lease_view.ts";
import { Pieces } from "../../../src/transceiver/pieces.ts";

describe("the receiver's view of a lease", () => {
  it("ends at 0.95 of the lease after the request that was confirmed was written", () => {
    const view = new LeaseView(10_000, false, 1_000);
    expect(view.accepts(10_000, 10_499)).toBe(true);
    expect(view.accepts(10_000, 10_500)).toBe(false);
    view.confirmed(5_000);
    expect(view.accepts(14_000, 14_499)).toBe(true);
    view.confirmed(2_000);
    expect(view.accepts(14_000, 14_499)).toBe(true);
  });

  it("says until when a sender that is found dead must have held its lease", () => {
    const view = new LeaseView(10_000, true, 1_000);
    expect(view.holds(10_499)).toBe(true);
    expect(view.holds(10_500)).toBe(false);
    view.confirmed(3_000);
    expect(view.holds(12_499)).toBe(true);
  });

  it("does not trust its clock for a read that ran longer than a third of the lease, nor when it is strict", () => {
    expect(new LeaseView(9_000, false, 0).accepts(0, 3_000)).toBe(true);
    expect(new LeaseView(9_000, false, 0).accepts(0, 3_001)).toBe(false);
    expect(new LeaseView(9_000, true, 0).accepts(0, 1)).toBe(false);
  });

  it("survives two lost renewals and a stop of a quarter", () => {
    const period = renewalPeriodMs(10_000);
    expect(3 * period).toBeLessThan(0.95 * 10_000);
    expect(period).toBe(2_375);
  });
});

describe("the pieces of an attempt", () => {
  it("count as arrived in order, and late ones once a renewal written after their end was held", () => {
    const pieces = new Pieces(10);
    const [first, second] = [pieces.post(50, 0), pieces.post(90, 0)];
    pieces.ended(second, 100, 40);
    pieces.accept(second);
    expect([pieces.leading, pieces.running, pieces.late]).toEqual([10, 1, 0]);
    pieces.ended(first, 200, 40);
    expect([pieces.running, pieces.late]).toEqual([0, 1]);
    expect(pieces.acceptEndedBefore(199)).toBe(false);
    expect(pieces.acceptEndedBefore(200)).toBe(true);
    expect([pieces.leading, pieces.bytes, pieces.accepted(90), pieces.accepted(91)]).toEqual([90, 80, true, false]);
  });

  it("are unquiet until each has said so, also after a cancel", () => {
    const pieces = new Pieces(0);
    const piece = pieces.post(10, 0);
    let cancels = 0;
    piece.read = { cancel: () => cancels++ };
    pieces.cancel();
    pieces.cancel();
    expect([cancels, pieces.unquiet, pieces.void]).toEqual([1, 1, true]);
    pieces.quiet();
    expect(pieces.unquiet).toBe(0);
  });
});
