import { KvError } from "../errors.ts";
import type { Epoch, TransferId } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { FirstTokens, TransferReport } from "./api.ts";
import type { PlaneLease, PlaneTimer } from "./data_plane.ts";
import type { AbortCode, FrameOf, SenderFrame } from "./protocol.ts";
import {
  type PartlyReady,
  type PullAsked,
  refusalFrame,
  refusals,
  type SenderHouse,
  type SessionOwner,
  type SessionStart,
} from "./sender_house.ts";
import type { SenderSession } from "./sender_session.ts";
import type { Refusal, SenderEffect } from "./sender_table.ts";
import { type Digests, NO_DIGESTS, OwedDigests, partsOf, rangesToVerify } from "./verification.ts";

interface Reader extends Pick<PullAsked, "receiver" | "transferId" | "heard" | "byLayer"> {
  readonly owed: OwedDigests;
  readonly part: RankPart | undefined;
  /** The cheapest by which it reaches this side. */
  readonly path: string;
}

/** msgpack knows no undefined. */
const wireOf = ({ firstTokens, firstLogProbs, cachedTokens }: FirstTokens) => ({
  firstTokens: [...firstTokens],
  ...(firstLogProbs === undefined ? {} : { firstLogProbs: [...firstLogProbs] }),
  ...(cachedTokens === undefined ? {} : { cachedTokens }),
});

/** What an offer's session does: an effect of the sender's table is a method of the same name. */
export class SenderWork implements Readonly<Record<SenderEffect, () => void>> {
  /** A share of its own; released at the end. */
  readonly blocks: BlockHold;
  readonly #session: SenderSession;
  readonly #house: SenderHouse;
  readonly #owner: SessionOwner;
  readonly #startedMs: number;
  /** Tokens [0, n) are visible. */
  ready: number;
  /** Behind those: of a chunk, the first layers. */
  ahead: PartlyReady | null;
  /** Known when prefill is over (generation-first). */
  first: FirstTokens | null;
  reader: Reader | null = null;
  lease: PlaneLease | null = null;
  #leaseEndsMs = 0;
  #grantedMs = 0;
  #attempts = 0;
  #offerEndsMs = Number.POSITIVE_INFINITY;
  #offerTimer: PlaneTimer | null = null;
  #transferTimer: PlaneTimer | null = null;
  cause: KvError | null = null;
  abortCode: AbortCode = "CANCELLED";
  // What the event at hand carries.
  asking: PullAsked | null = null;
  doneFrame: FrameOf<"DONE"> | null = null;
  extending: PlaneLease[] | null = null;
  held: TransferId[] | null = null;
  digested: Digests | null = null;

  constructor(session: SenderSession, house: SenderHouse, owner: SessionOwner, start: SessionStart) {
    this.#session = session;
    this.#house = house;
    this.#owner = owner;
    this.blocks = start.blocks.share();
    this.ready = start.ready;
    this.ahead = start.ahead;
    this.first = start.first;
    this.#startedMs = house.plane.nowMs();
  }

  /** The hold was shared in the constructor: before the caller could release its own. */
  pin(): void {
    this.#house.plane.hold();
  }

  bindReader(): void {
    const { receiver, transferId, heard, from, to, verify, byLayer, part, paths } = this.asking as PullAsked;
    const { tokensPerBlock } = this.#house;
    const before = this.reader?.transferId ?? null;
    const pulled = { from, to: Math.min(to, this.#owner.tokens), tokensPerBlock };
    const owed = new OwedDigests(rangesToVerify(verify, transferId, pulled));
    this.reader = { receiver, transferId, heard, byLayer, owed, part, path: paths[0] ?? "none" };
    this.#attempts++;
    this.#owner.bound(this.#session, before, transferId);
  }

  grantLease(): void {
    const { plane, limits } = this.#house;
    this.#leaseEndsMs = plane.nowMs() + limits.leaseMs;
    const { transferId } = this.reader as Reader;
    this.lease = plane.lease(
      limits.leaseMs,
      () => {
        this.lease = null;
        this.#session.dispatch("leaseOver");
      },
      { transferId, blocks: this.blocks.ids, stalled: () => this.#session.dispatch("slotStalled") },
    );
  }

  extendLease(): void {
    if (this.lease !== null) this.extending?.push(this.lease);
  }

  confirmHeld(): void {
    this.#leaseEndsMs = this.#house.plane.nowMs() + this.#house.limits.leaseMs;
    if (this.reader !== null) this.held?.push(this.reader.transferId);
  }

  dropLease(): void {
    this.lease?.drop();
    this.lease = null;
  }

  writeGrant(): void {
    this.#grantedMs = this.#house.plane.nowMs();
    this.#write((head) => ({
      type: "GRANT",
      ...head,
      seq: this.reader?.heard ?? 0,
      leaseMs: this.#house.limits.leaseMs,
      path: this.reader?.path ?? "none",
      blocks: this.blocks.ids,
      ready: this.ready,
    }));
    if (this.ahead !== null && this.reader?.byLayer === true) this.writeReady();
  }

  writeDigests(): void {
    const all = this.digested;
    if (all === null) return;
    for (const { first, bytes } of partsOf(all)) {
      this.#write((head) => ({
        type: "READY",
        ...head,
        tokens: this.ready,
        digestsFrom: first,
        digests: bytes,
      }));
    }
  }

  writeReady(): void {
    this.#write((head) => ({ type: "READY", ...head, tokens: this.ready, ...this.ahead }));
  }

  /** Again for each attempt: the one before may have missed it. */
  writeFinished(): void {
    const { first } = this;
    if (first !== null)
      this.#write((head) => ({ type: "FINISHED", ...head, tokens: this.#owner.tokens, ...wireOf(first) }));
  }

  writeAbort(): void {
    const expired = this.cause === null;
    const code = expired ? "LEASE_EXPIRED" : this.abortCode;
    const text = this.cause?.message ?? "the lease ended";
    this.#write((head) => ({ type: "ABORT", ...head, code, text: text.slice(0, 1024) }));
  }

  startOfferTimer(): void {
    this.#setOfferTimer(this.#offerEndsMs);
  }

  noteOfferEnd(): void {
    this.#offerEndsMs = this.#house.plane.nowMs() + this.#house.limits.offerMs;
  }

  stopOfferTimer(): void {
    this.#offerTimer?.clear();
    this.#offerTimer = null;
  }

  /** At least one lease is left for the receiver's retry (lease-model.md section 4). */
  resumeOfferTimer(): void {
    const { plane, limits } = this.#house;
    this.#setOfferTimer(Math.max(this.#offerEndsMs, plane.nowMs() + limits.leaseMs));
  }

  startTransferTimer(): void {
    this.#setTransferTimer();
  }

  restartTransferTimer(): void {
    this.#setTransferTimer();
  }

  stopTransferTimer(): void {
    this.#transferTimer?.clear();
    this.#transferTimer = null;
  }

  noteCause(): void {
    if (this.cause !== null) return;
    const ms = this.#house.limits.transferMs ?? 0;
    this.cause = new KvError("TRANSFER_TIMEOUT", { transfer: this.#name(), ms });
    this.abortCode = "TRANSFER_TIMEOUT";
  }

  noteStall(): void {
    if (this.cause !== null) return;
    const why = "its reader kept a staging slot longer than stallMs";
    this.cause = new KvError("RECEIVER_FAILED", { transfer: this.#name(), why });
    this.abortCode = "FAILED";
  }

  settleCause(): void {
    this.#settle(null, this.cause ?? new KvError("CANCELLED", { transfer: this.#name(), why: "ended" }));
  }

  settleOfferExpired(): void {
    this.#settle(
      null,
      new KvError("OFFER_EXPIRED", { request: this.#owner.requestId, ms: this.#house.limits.offerMs }),
    );
  }

  settleLeaseExpired(): void {
    const ms = Math.round(this.#house.plane.nowMs() - this.#grantedMs);
    this.#settle(null, new KvError("LEASE_EXPIRED", { transfer: this.#name(), ms }));
  }

  countDropped(): void {
    this.#house.countDropped(`sender in ${this.#session.state}`);
  }

  refuseNoOffer(): void {
    this.#refuse("refuseNoOffer");
  }

  refuseGone(): void {
    this.#refuse("refuseGone");
  }

  refuseBusy(): void {
    this.#refuse("refuseBusy");
  }

  refuseBadToken(): void {
    this.#refuse("refuseBadToken");
  }

  refuseLayout(): void {
    this.#refuse("refuseLayout");
  }

  refuseDraining(): void {
    this.#refuse("refuseDraining");
  }

  refuseQueueTimeout(): void {
    this.#refuse("refuseQueueTimeout");
  }

  #name(): string {
    return this.reader?.transferId ?? `of request ${this.#owner.requestId}`;
  }

  #write(build: (head: { se: Epoch; re: Epoch; transferId: TransferId }) => SenderFrame): void {
    if (this.reader === null) return;
    const { receiver, transferId } = this.reader;
    this.#house.write(receiver, build({ se: this.#house.epoch, re: receiver, transferId }));
  }

  #refuse(refusal: Refusal): void {
    const asking = this.asking;
    if (asking === null) return;
    const { plane, limits } = this.#house;
    // Where others hold the leases, theirs may run as long.
    const left = this.#session.leased ? Math.max(0, Math.ceil(this.#leaseEndsMs - plane.nowMs())) : limits.leaseMs;
    const retryAfterMs = refusals[refusal].code === "BUSY" ? left : 0;
    this.#house.write(asking.receiver, refusalFrame(refusal, this.#house.epoch, asking, retryAfterMs));
  }

  askDigests(): void {
    const reader = this.reader;
    const due = reader?.owed.due(this.ready);
    if (!due) return;
    const digested = (bytes: Uint8Array): void => {
      // Nobody waits for those of another attempt, or of an ended one.
      if (this.reader !== reader || this.#session.state !== "GRANT") return;
      if (bytes.length === 0) {
        const failed = { transfer: this.#name(), path: reader?.path ?? "none", why: NO_DIGESTS };
        this.#session.fail(new KvError("COPY_FAILED", failed));
        return;
      }
      this.digested = { first: due.first, bytes };
      this.#session.dispatch("digested");
      this.digested = null;
    };
    const blocks = Uint32Array.from(this.blocks.ids);
    this.#house.plane.digest(
      { blocks, ranges: due.ranges, sequenceTokens: this.#owner.tokens, part: reader?.part },
      digested,
    );
  }

  #setOfferTimer(atMs: number): void {
    this.#offerTimer?.clear();
    // Infinity: the prefill runs, and whoever computes it ends the offer.
    this.#offerTimer = Number.isFinite(atMs)
      ? this.#house.plane.timer(atMs, () => this.#session.dispatch("offerTimer"))
      : null;
  }

  #setTransferTimer(): void {
    const { plane, limits } = this.#house;
    this.#transferTimer?.clear();
    if (limits.transferMs === null) return;
    this.#transferTimer = plane.timer(plane.nowMs() + limits.transferMs, () => this.#session.dispatch("transferTimer"));
  }

  settleByReceiver(): void {
    const done = this.doneFrame;
    if (done?.status === "ok") {
      this.#settle(this.#report(done.bytes), null);
      return;
    }
    const transfer = this.#name();
    const why = `the receiver ended it: ${done?.status ?? "unknown"}`;
    const error =
      this.cause ??
      (done?.status === "cancelled"
        ? new KvError("CANCELLED", { transfer, why: "the receiver cancelled it" })
        : new KvError("RECEIVER_FAILED", { transfer, why }));
    this.#settle(null, error);
  }

  #report(bytes: number): TransferReport {
    const now = this.#house.plane.nowMs();
    const movingMs = now - this.#grantedMs;
    return {
      requestId: this.#owner.requestId,
      bytes,
      blocks: this.blocks.ids.length,
      tokens: this.#owner.tokens,
      ms: now - this.#startedMs,
      queueMs: this.#grantedMs - this.#startedMs,
      connectMs: 0,
      waitMs: 0,
      movingMs,
      verifyMs: 0,
      gbPerS: movingMs > 0 ? bytes / movingMs / 1e6 : 0,
      path: this.reader?.path ?? "none",
      chunks: 1,
      runs: 0,
      pieces: 0,
      attempts: this.#attempts,
    };
  }

  /** The only place that gives the blocks back. */
  #settle(report: TransferReport | null, error: KvError | null): void {
    this.blocks.release();
    this.#owner.ended(this.#session, report, error);
    this.#house.plane.letGo();
  }
}
