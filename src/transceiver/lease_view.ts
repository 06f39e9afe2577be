/** The receiver's share of the sender's lease: clock rates may differ by 2.5 % a side (lease-model.md section 4). */
export const VIEW_SHARE = 0.95;
/** Renewals in one view; two may be lost. */
const RENEWALS = 4;
/** A read that ran longer than this share of the lease may have slept in a paused VM: only a renewal can confirm it. */
const LONGEST_READ_SHARE = 1 / 3;

export const renewalPeriodMs = (leaseMs: number): number => (VIEW_SHARE * leaseMs) / RENEWALS;

/** What the receiver may conclude from its own clock about a lease that the sender holds (I2). Pure. */
export class LeaseView {
  readonly leaseMs: number;
  readonly strict: boolean;
  #baseMs: number;

  /** @param baseMs the clock before the request was written that the sender confirmed */
  constructor(leaseMs: number, strict: boolean, baseMs: number) {
    this.leaseMs = leaseMs;
    this.strict = strict;
    this.#baseMs = baseMs;
  }

  /** A RENEW written at `writtenMs` was answered as held. */
  confirmed(writtenMs: number): void {
    this.#baseMs = Math.max(this.#baseMs, writtenMs);
  }

  /** The sender holds its lease at `nowMs` for certain, unless it has died with it. */
  holds(nowMs: number): boolean {
    return nowMs - this.#baseMs < VIEW_SHARE * this.leaseMs;
  }

  /** @param atMs the clock after the poll that saw the read complete, never before it */
  accepts(postedMs: number, atMs: number): boolean {
    if (this.strict || atMs - postedMs > this.leaseMs * LONGEST_READ_SHARE) return false;
    return this.holds(atMs);
  }
}
