import { KvError } from "../errors.ts";
import { attemptOf, type CapabilityToken, type Epoch, type RequestId, type TransferId } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { CancelOutcome, FirstTokens, TransferReport } from "./api.ts";
import type { DataPlane, PlaneLease, PlaneTimer } from "./data_plane.ts";
import type { SessionObserver } from "./observer.ts";
import { equalTokens } from "./proof.ts";
import type { AbortCode, FrameOf, RefuseCode, SenderFrame } from "./protocol.ts";
import {
  leasedStates,
  type Refusal,
  type SenderEffect,
  type SenderEvent,
  type SenderState,
  senderTable,
} from "./sender_table.ts";
import { cellOf } from "./transition.ts";
import { type Digests, OwedDigests, partsOf, rangesToVerify, type VerifyMode } from "./verification.ts";

export interface SenderLimits {
  readonly leaseMs: number;
  /** kv_transfer_timeout_ms; null: no bound of its own. */
  readonly transferMs: number | null;
  /** How long an offer that nobody fetches stays pinned after its prefill. */
  readonly offerMs: number;
}

/** What a session needs of the house around it. */
export interface SenderSurroundings {
  readonly plane: DataPlane;
  readonly epoch: Epoch;
  readonly limits: SenderLimits;
  readonly tokensPerBlock: number;
  /** To the current connection of a receiver epoch; false: there is none, the frame is lost. */
  write(receiver: Epoch, frame: SenderFrame): boolean;
  countDropped(what: string): void;
  bound(session: SenderSession, before: TransferId | null, now: TransferId): void;
  ended(session: SenderSession, report: TransferReport | null, error: KvError | null): void;
  readonly observer: SessionObserver | undefined;
}

/** Who asks: a PULL of one receiver epoch. */
export interface PullAsked {
  readonly receiver: Epoch;
  readonly transferId: TransferId;
  /** null: of a member of the cluster, which needs none (generation-first). */
  readonly token: CapabilityToken | null;
  readonly sameLayout: boolean;
  readonly draining: boolean;
  /** The RENEW heard last while it waited for the offer, 0: none. */
  readonly heard: number;
  /** Tokens it reads, and what it compares of them. */
  readonly from: number;
  readonly to: number;
  readonly verify: VerifyMode;
  /** What of this rank's KV it reads; default all. */
  readonly part?: RankPart | undefined;
  /** Ranks of another instance read this offer. */
  readonly taken?: boolean;
}

export const refusals: Readonly<Record<Refusal, { readonly code: RefuseCode; readonly text: string }>> = {
  refuseNoOffer: { code: "NO_OFFER", text: "no such offer is held here" },
  refuseGone: { code: "GONE", text: "the offer has ended" },
  refuseBusy: { code: "BUSY", text: "leased to another receiver" },
  refuseBadToken: { code: "BAD_TOKEN", text: "the token is not this offer's" },
  refuseLayout: { code: "LAYOUT", text: "the KV layouts differ" },
  refuseDraining: { code: "DRAINING", text: "this side is closing" },
  refuseQueueTimeout: { code: "QUEUE_TIMEOUT", text: "no offer was made in time" },
};

export function refusalFrame(
  refusal: Refusal,
  epoch: Epoch,
  asked: Pick<PullAsked, "receiver" | "transferId">,
  retryAfterMs: number,
): FrameOf<"REFUSE"> {
  const { receiver: re, transferId } = asked;
  return { type: "REFUSE", se: epoch, re, transferId, retryAfterMs, ...refusals[refusal] };
}

interface Reader extends Pick<PullAsked, "receiver" | "transferId" | "heard"> {
  readonly owed: OwedDigests;
  readonly part: RankPart | undefined;
}

export const sameTransfer = (left: TransferId, right: TransferId): boolean => left.slice(0, 32) === right.slice(0, 32);

/** msgpack knows no undefined. */
const wireOf = ({ firstTokens, firstLogProbs, cachedTokens }: FirstTokens) => ({
  firstTokens: [...firstTokens],
  ...(firstLogProbs === undefined ? {} : { firstLogProbs: [...firstLogProbs] }),
  ...(cachedTokens === undefined ? {} : { cachedTokens }),
});

/** An offer as one rank reads it: runs the sender's table and carries out its effects. */
export class SenderSession {
  readonly requestId: RequestId;
  readonly tokens: number;
  readonly token: CapabilityToken;
  /** Known from `finish` on. */
  first: FirstTokens | null;
  readonly #around: SenderSurroundings;
  /** A share of its own; released at the end. */
  readonly blocks: BlockHold;
  readonly #startedMs: number;
  #state: SenderState = "NONE";
  #ready: number;
  #reader: Reader | null = null;
  #lease: PlaneLease | null = null;
  #leaseEndsMs = 0;
  #grantedMs = 0;
  #attempts = 0;
  #offerEndsMs = Number.POSITIVE_INFINITY;
  #offerTimer: PlaneTimer | null = null;
  #transferTimer: PlaneTimer | null = null;
  #cause: KvError | null = null;
  #abortCode: AbortCode = "CANCELLED";
  // What the event at hand carries; the table's effects read it.
  #asking: PullAsked | null = null;
  #doneFrame: FrameOf<"DONE"> | null = null;
  #extending: PlaneLease[] | null = null;
  #held: TransferId[] | null = null;
  #digested: Digests | null = null;

  constructor(
    around: SenderSurroundings,
    offer: {
      requestId: RequestId;
      tokens: number;
      token: CapabilityToken;
      blocks: BlockHold;
      ready: number;
      first: FirstTokens | null;
    },
  ) {
    this.#around = around;
    this.requestId = offer.requestId;
    this.tokens = offer.tokens;
    this.token = offer.token;
    this.blocks = offer.blocks.share();
    this.#ready = offer.ready;
    this.first = offer.first;
    this.#startedMs = around.plane.nowMs();
    this.#dispatch("send");
    if (offer.ready === offer.tokens) this.#dispatch("prefillEnded");
  }

  get state(): SenderState {
    return this.#state;
  }

  get leased(): boolean {
    return leasedStates.has(this.#state);
  }

  get receiver(): Epoch | null {
    return this.#reader?.receiver ?? null;
  }

  get transferId(): TransferId | null {
    return this.#reader?.transferId ?? null;
  }

  get lease(): PlaneLease | null {
    return this.#lease;
  }

  /** Tokens [0, n) are visible: more than before. */
  ready(tokens: number): void {
    this.#ready = tokens;
    this.#dispatch(tokens === this.tokens ? "prefillEnded" : "progress");
  }

  /** All tokens are visible, and this is what came of the prompt. */
  finish(first: FirstTokens): void {
    this.first = first;
    this.#ready = this.tokens;
    this.#dispatch("finished");
  }

  cancel(why: string): CancelOutcome {
    if (this.#state === "END") return "already_complete";
    const transfer = this.#reader?.transferId ?? `of request ${this.requestId}`;
    this.#dispatchWithCause("cancel", new KvError("CANCELLED", { transfer, why }), "CANCELLED");
    return this.state === "END" ? "cancelled" : "in_flight";
  }

  pull(asked: PullAsked): void {
    this.#asking = asked;
    this.#dispatch(this.#classify(asked));
    this.#asking = null;
  }

  /** A RENEW that names this attempt; its lease is put on `extending` if it may go on. */
  renew(extending: PlaneLease[]): void {
    this.#extending = extending;
    this.#dispatch("renew");
    this.#extending = null;
  }

  /** The data plane has extended the lease; the id goes on `held` if the receiver may be told so. */
  renewed(held: TransferId[]): void {
    this.#held = held;
    this.#dispatch("renewed");
    this.#held = null;
  }

  receiverDone(frame: FrameOf<"DONE">): void {
    this.#doneFrame = frame;
    this.#dispatch("done");
    this.#doneFrame = null;
  }

  /** The receiver's epoch said HELLO and reads this attempt no more. */
  helloWithout(): void {
    this.#dispatch("helloWithout");
  }

  #classify(asked: PullAsked): SenderEvent {
    if (asked.token !== null && !equalTokens(asked.token, this.token)) return "pullBadToken";
    if (asked.draining) return "pullDraining";
    if (!asked.sameLayout) return "pullLayout";
    if (asked.taken === true) return "pullOther";
    const reader = this.#reader;
    const again = reader?.receiver === asked.receiver && sameTransfer(reader.transferId, asked.transferId);
    if (!again) return this.leased ? "pullOther" : "pull";
    if (attemptOf(asked.transferId) <= attemptOf(reader.transferId)) return "pullRepeated";
    return this.leased ? "pullHigher" : "pull";
  }

  #dispatchWithCause(event: SenderEvent, cause: KvError, code: AbortCode): void {
    // The first cause stays: a second cancel of an ending session explains nothing.
    this.#cause ??= cause;
    if (this.#cause === cause) this.#abortCode = code;
    this.#dispatch(event);
  }

  #dispatch(event: SenderEvent): void {
    const from = this.#state;
    const { next, effects } = cellOf<SenderState, SenderEvent, SenderEffect>("sender", senderTable, from, event);
    this.#state = next;
    this.#around.observer?.({ role: "sender", requestId: this.requestId, from, event, to: next });
    for (const effect of effects) this.#effects[effect]();
  }

  readonly #effects: Readonly<Record<SenderEffect, () => void>> = {
    // The hold was shared in the constructor: before the caller could release its own.
    pin: () => this.#around.plane.hold(),
    bindReader: () => {
      const { receiver, transferId, heard, from, to, verify, part } = this.#asking as PullAsked;
      const { tokensPerBlock } = this.#around;
      const before = this.transferId;
      const pulled = { from, to: Math.min(to, this.tokens), tokensPerBlock };
      const owed = new OwedDigests(rangesToVerify(verify, transferId, pulled));
      this.#reader = { receiver, transferId, heard, owed, part };
      this.#attempts++;
      this.#around.bound(this, before, transferId);
    },
    grantLease: () => {
      const { plane, limits } = this.#around;
      this.#leaseEndsMs = plane.nowMs() + limits.leaseMs;
      this.#lease = plane.lease(limits.leaseMs, () => {
        this.#lease = null;
        this.#dispatch("leaseOver");
      });
    },
    extendLease: () => {
      if (this.#lease !== null) this.#extending?.push(this.#lease);
    },
    confirmHeld: () => {
      this.#leaseEndsMs = this.#around.plane.nowMs() + this.#around.limits.leaseMs;
      if (this.#reader !== null) this.#held?.push(this.#reader.transferId);
    },
    dropLease: () => {
      this.#lease?.drop();
      this.#lease = null;
    },
    writeGrant: () => {
      this.#grantedMs = this.#around.plane.nowMs();
      this.#write((head) => ({
        type: "GRANT",
        ...head,
        seq: this.#reader?.heard ?? 0,
        leaseMs: this.#around.limits.leaseMs,
        path: "shared_memory",
        blocks: this.blocks.ids,
        ready: this.#ready,
      }));
    },
    askDigests: () => this.#askDigests(),
    writeDigests: () => {
      const all = this.#digested;
      if (all === null) return;
      for (const { first, bytes } of partsOf(all)) {
        this.#write((head) => ({
          type: "READY",
          ...head,
          tokens: this.#ready,
          digestsFrom: first,
          digests: bytes,
        }));
      }
    },
    writeReady: () => this.#write((head) => ({ type: "READY", ...head, tokens: this.#ready })),
    // Again for each attempt: the one before may have missed it.
    writeFinished: () => {
      const { first } = this;
      if (first !== null) this.#write((head) => ({ type: "FINISHED", ...head, tokens: this.tokens, ...wireOf(first) }));
    },
    writeAbort: () => {
      const expired = this.#cause === null;
      const code = expired ? "LEASE_EXPIRED" : this.#abortCode;
      const text = this.#cause?.message ?? "the lease ended";
      this.#write((head) => ({ type: "ABORT", ...head, code, text: text.slice(0, 1024) }));
    },
    startOfferTimer: () => this.#startOfferTimer(this.#offerEndsMs),
    noteOfferEnd: () => {
      this.#offerEndsMs = this.#around.plane.nowMs() + this.#around.limits.offerMs;
    },
    stopOfferTimer: () => {
      this.#offerTimer?.clear();
      this.#offerTimer = null;
    },
    // At least one lease is left for the receiver's retry (lease-model.md section 4).
    resumeOfferTimer: () => {
      const { plane, limits } = this.#around;
      this.#startOfferTimer(Math.max(this.#offerEndsMs, plane.nowMs() + limits.leaseMs));
    },
    startTransferTimer: () => this.#startTransferTimer(),
    restartTransferTimer: () => this.#startTransferTimer(),
    stopTransferTimer: () => {
      this.#transferTimer?.clear();
      this.#transferTimer = null;
    },
    noteCause: () => {
      if (this.#cause !== null) return;
      const ms = this.#around.limits.transferMs ?? 0;
      this.#cause = new KvError("TRANSFER_TIMEOUT", { transfer: this.#name(), ms });
      this.#abortCode = "TRANSFER_TIMEOUT";
    },
    settleByReceiver: () => this.#settleByReceiver(),
    settleCause: () =>
      this.#settle(null, this.#cause ?? new KvError("CANCELLED", { transfer: this.#name(), why: "ended" })),
    settleOfferExpired: () =>
      this.#settle(null, new KvError("OFFER_EXPIRED", { request: this.requestId, ms: this.#around.limits.offerMs })),
    settleLeaseExpired: () => {
      const ms = Math.round(this.#around.plane.nowMs() - this.#grantedMs);
      this.#settle(null, new KvError("LEASE_EXPIRED", { transfer: this.#name(), ms }));
    },
    countDropped: () => this.#around.countDropped(`sender in ${this.#state}`),
    refuseNoOffer: () => this.#refuse("refuseNoOffer"),
    refuseGone: () => this.#refuse("refuseGone"),
    refuseBusy: () => this.#refuse("refuseBusy"),
    refuseBadToken: () => this.#refuse("refuseBadToken"),
    refuseLayout: () => this.#refuse("refuseLayout"),
    refuseDraining: () => this.#refuse("refuseDraining"),
    refuseQueueTimeout: () => this.#refuse("refuseQueueTimeout"),
  };

  #name(): string {
    return this.#reader?.transferId ?? `of request ${this.requestId}`;
  }

  #write(build: (head: { se: Epoch; re: Epoch; transferId: TransferId }) => SenderFrame): void {
    if (this.#reader === null) return;
    const { receiver, transferId } = this.#reader;
    this.#around.write(receiver, build({ se: this.#around.epoch, re: receiver, transferId }));
  }

  #refuse(refusal: Refusal): void {
    const asking = this.#asking;
    if (asking === null) return;
    const { plane, limits } = this.#around;
    // Where others hold the leases, theirs may run as long.
    const left = this.leased ? Math.max(0, Math.ceil(this.#leaseEndsMs - plane.nowMs())) : limits.leaseMs;
    const retryAfterMs = refusals[refusal].code === "BUSY" ? left : 0;
    this.#around.write(asking.receiver, refusalFrame(refusal, this.#around.epoch, asking, retryAfterMs));
  }

  #askDigests(): void {
    const reader = this.#reader;
    const due = reader?.owed.due(this.#ready);
    if (!due) return;
    const digested = (bytes: Uint8Array): void => {
      // Nobody waits for those of another attempt, or of an ended one.
      if (this.#reader !== reader || this.#state !== "GRANT") return;
      this.#digested = { first: due.first, bytes };
      this.#dispatch("digested");
      this.#digested = null;
    };
    const blocks = Uint32Array.from(this.blocks.ids);
    this.#around.plane.digest(
      { blocks, ranges: due.ranges, sequenceTokens: this.tokens, part: reader?.part },
      digested,
    );
  }

  #startOfferTimer(atMs: number): void {
    this.#offerTimer?.clear();
    // Infinity: the prefill runs, and whoever computes it ends the offer.
    this.#offerTimer = Number.isFinite(atMs)
      ? this.#around.plane.timer(atMs, () => this.#dispatch("offerTimer"))
      : null;
  }

  #startTransferTimer(): void {
    const { plane, limits } = this.#around;
    this.#transferTimer?.clear();
    if (limits.transferMs === null) return;
    this.#transferTimer = plane.timer(plane.nowMs() + limits.transferMs, () => this.#dispatch("transferTimer"));
  }

  #settleByReceiver(): void {
    const done = this.#doneFrame;
    if (done?.status === "ok") {
      this.#settle(this.#report(done.bytes), null);
      return;
    }
    const transfer = this.#name();
    const why = `the receiver ended it: ${done?.status ?? "unknown"}`;
    const error =
      this.#cause ??
      (done?.status === "cancelled"
        ? new KvError("CANCELLED", { transfer, why: "the receiver cancelled it" })
        : new KvError("RECEIVER_FAILED", { transfer, why }));
    this.#settle(null, error);
  }

  #report(bytes: number): TransferReport {
    const now = this.#around.plane.nowMs();
    const movingMs = now - this.#grantedMs;
    return {
      requestId: this.requestId,
      bytes,
      blocks: this.blocks.ids.length,
      tokens: this.tokens,
      ms: now - this.#startedMs,
      queueMs: this.#grantedMs - this.#startedMs,
      connectMs: 0,
      waitMs: 0,
      movingMs,
      verifyMs: 0,
      gbPerS: movingMs > 0 ? bytes / movingMs / 1e6 : 0,
      path: "shared_memory",
      chunks: 1,
      runs: 0,
      pieces: 0,
      attempts: this.#attempts,
    };
  }

  /** The only place that gives the blocks back. */
  #settle(report: TransferReport | null, error: KvError | null): void {
    this.blocks.release();
    this.#around.ended(this, report, error);
    this.#around.plane.letGo();
  }
}
