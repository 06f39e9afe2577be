import { isKvError, KvError } from "../errors.ts";
import {
  attemptOf,
  type BlockId,
  type CapabilityToken,
  type Epoch,
  newTransferId,
  nextAttempt,
  type RequestId,
  type TransferId,
} from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { CancelOutcome, FirstTokens, TransferReport } from "./api.ts";
import type { DataPlane, PlaneTimer, ReadEnd } from "./data_plane.ts";
import { LeaseView } from "./lease_view.ts";
import type { SessionObserver } from "./observer.ts";
import type { LinkUser, PeerLink } from "./peer_link.ts";
import { Pieces } from "./pieces.ts";
import { Progress } from "./progress.ts";
import type { DoneStatus, FrameOf } from "./protocol.ts";
import type { PullTurns, PullWaiter } from "./pull_turns.ts";
import {
  type ReceiverEffect,
  type ReceiverEvent,
  type ReceiverState,
  receiverTable,
  renewingStates,
} from "./receiver_table.ts";
import { refusedError } from "./refused_error.ts";
import { Settled } from "./settled.ts";
import { type TransferPhase, TransferTimes } from "./transfer_times.ts";
import { cellOf } from "./transition.ts";
import { DigestComparison, rangesToVerify, type VerifyMode } from "./verification.ts";

const ATTEMPTS = 3;

/** null: reads decide, by what is left to read. */
const phaseOf: Readonly<Record<ReceiverState, TransferPhase | null>> = {
  QUEUED: "queue",
  CONNECTING: "connect",
  PULL: "wait",
  READ: null,
  FINISH: null,
  ORPHAN: null,
  VERIFY: "verify",
  RETRY: "wait",
  DRAIN: "ended",
  END: "ended",
};

export interface ReceiverLimits {
  /** Waiting for a turn, a connection and a GRANT. */
  readonly queueMs: number;
  /** From GRANT; null: no bound of its own. */
  readonly transferMs: number | null;
  /** Reads that were posted and make no progress. */
  readonly stallMs: number;
  readonly strict: boolean;
  readonly verify: VerifyMode;
}

export interface ReceiverSurroundings {
  readonly plane: DataPlane;
  readonly limits: ReceiverLimits;
  readonly turns: PullTurns<ReceiverSession>;
  readonly sender: Epoch;
  readonly reader: FrameOf<"PULL">["reader"];
  /** The link to the offer's sender, made when it is first wanted. */
  link(): PeerLink;
  readonly tokensPerBlock: number;
  /** Blocks arrived with another digest than the sender's. */
  countMismatches(blocks: number): void;
  /** The outcome is told; blocks may still be in quarantine. */
  settled(session: ReceiverSession, report: TransferReport | null, error: KvError | null): void;
  /** The blocks are given back. */
  released(session: ReceiverSession): void;
  readonly observer: SessionObserver | undefined;
}

export interface WantedOffer {
  readonly requestId: RequestId;
  /** null: the offer does not stand yet, and the transfer ends when its first tokens are here (generation-first). */
  readonly token: CapabilityToken | null;
  readonly peer: string;
  readonly tokens: number;
  readonly skipTokens: number;
  readonly blocks: BlockHold;
  /** What of the sender's KV is read; default all. */
  readonly part?: RankPart;
}

/** One pull: runs the receiver's table and carries out its effects. */
export class ReceiverSession implements LinkUser, PullWaiter {
  readonly offer: WantedOffer;
  readonly progress = new Progress();
  readonly #around: ReceiverSurroundings;
  readonly #blocks: BlockHold;
  readonly #settled = new Settled<TransferReport>();
  readonly #released = new Settled<void>();
  readonly #startedMs: number;
  readonly #times: TransferTimes;
  #state: ReceiverState = "QUEUED";
  #transferId: TransferId = newTransferId();
  #link: PeerLink | null = null;
  #pulledMs = 0;
  #view: LeaseView | null = null;
  #source: Uint32Array = new Uint32Array(0);
  #announced = 0;
  #pieces: Pieces;
  #comparison = new DigestComparison(new Uint32Array(0));
  /** An attempt has ended by a difference already. */
  #differed = false;
  /** It is dead or gone: no digest comes any more, and no other attempt can be made. */
  #senderGone = false;
  #deadlineMs = Number.POSITIVE_INFINITY;
  #movingMs = 0;
  #runs = 0;
  #copies = 0;
  #path = "none";
  #progressMs = 0;
  #first: FirstTokens | null = null;
  #retryAtMs = 0;
  #queueEndsMs = 0;
  #queueTimer: PlaneTimer | null = null;
  #transferTimer: PlaneTimer | null = null;
  #retryTimer: PlaneTimer | null = null;
  // What the event at hand carries; the table's effects read it.
  #error: KvError | null = null;
  #grant: FrameOf<"GRANT"> | null = null;
  #confirmedMs = 0;
  #outcome: DoneStatus | null = null;

  constructor(around: ReceiverSurroundings, offer: WantedOffer) {
    this.#around = around;
    this.offer = offer;
    this.#blocks = offer.blocks.share();
    this.#startedMs = around.plane.nowMs();
    this.#times = new TransferTimes(this.#startedMs);
    this.#pieces = new Pieces(offer.skipTokens);
    around.plane.hold();
    this.#startQueueTimer();
  }

  get state(): ReceiverState {
    return this.#state;
  }

  get done(): Promise<TransferReport> {
    return this.#settled.promise;
  }

  get released(): Promise<void> {
    return this.#released.promise;
  }

  /** What the sender hears of it; null while it goes on. */
  get outcome(): DoneStatus | null {
    return this.#outcome;
  }

  /** Held only because a transport may still touch them. */
  get quarantined(): readonly BlockId[] {
    return this.#state === "DRAIN" ? this.#blocks.ids : [];
  }

  cancel(why: string): CancelOutcome {
    if (this.#outcome !== null) return "already_complete";
    this.#fail("cancel", new KvError("CANCELLED", { transfer: this.#transferId, why }));
    // TypeScript can't see that the state has changed.
    return (this.#state as ReceiverState) === "END" ? "cancelled" : "in_flight";
  }

  // --- LinkUser -----------------------------------------------------------------------------------------------------------

  get renewing(): TransferId | null {
    return renewingStates.has(this.#state) ? this.#transferId : null;
  }

  get live(): TransferId | null {
    const reading = this.#state === "RETRY" && this.#pieces.unquiet > 0;
    return reading || renewingStates.has(this.#state) ? this.#transferId : null;
  }

  // --- PullWaiter ---------------------------------------------------------------------------------------------------------

  get peer(): Epoch {
    return this.#around.sender;
  }

  get size(): number {
    return this.offer.tokens - this.offer.skipTokens;
  }

  /** In other states it is kept for the reads that follow. */
  turn(): void {
    if (this.#state === "QUEUED" || this.#state === "READ") this.#dispatch("turn");
  }

  // --- frames and events of the link ----------------------------------------------------------------------------------------

  linkUp(): void {
    if (this.#needsNoLink) return;
    // Digests that were lost with the connection do not come again.
    const blind = this.#state === "FINISH" && !this.#comparison.hasTheirs;
    this.#dispatch(blind ? "linkUpBlind" : "linkUp");
  }

  linkLost(error: KvError): void {
    if (this.#needsNoLink) return;
    // Direct reads that are all posted may finish inside the view (lease-model.md section 3); a late one needs the connection.
    const all = this.#pieces.posted === this.offer.tokens && this.#pieces.late === 0 && this.#isTold;
    this.#fail(all && this.#state === "READ" ? "linkLostAllPosted" : "linkLost", error);
  }

  linkFailed(error: KvError): void {
    if (!this.#noMoreDigests()) this.#fail("linkFailed", error);
  }

  staleEpoch(error: KvError): void {
    if (!this.#noMoreDigests()) this.#fail("staleEpoch", error);
  }

  senderDead(error: KvError): void {
    if (this.#noMoreDigests()) return;
    // Seen dead inside the view, it died with the lease held: nobody has changed the blocks, and nobody can. Seen later, it may have
    // released them first, and given them to another request.
    const reading = this.#state === "READ" || this.#state === "FINISH";
    const unsure = reading && this.#view?.holds(this.#around.plane.nowMs()) !== true;
    this.#fail(unsure ? "senderDeadLate" : "senderDead", error);
  }

  granted(frame: FrameOf<"GRANT">): void {
    if (this.#state !== "PULL" || frame.transferId !== this.#transferId) return;
    this.#grant = frame;
    this.#dispatch("granted");
    this.#grant = null;
  }

  refused(frame: FrameOf<"REFUSE">): void {
    if (this.#state !== "PULL" || frame.transferId !== this.#transferId) return;
    this.#retryAtMs = this.#around.plane.nowMs() + frame.retryAfterMs;
    const inTime = frame.code === "BUSY" && this.#retryAtMs < this.#queueEndsMs;
    this.#fail(inTime ? "refusedBusy" : "refused", refusedError(frame, this.offer));
  }

  ready(frame: FrameOf<"READY">): void {
    const awaited = this.#state === "READ" || this.#state === "VERIFY";
    if (!awaited || frame.transferId !== this.#transferId) return;
    const { digestsFrom: first, digests: bytes } = frame;
    if (first !== undefined && bytes !== undefined) {
      this.#comparison.takeTheirs({ first, bytes });
      this.#progressMs = this.#around.plane.nowMs();
    }
    if (this.#state === "VERIFY") {
      this.#dispatch("digests");
      return;
    }
    if (frame.tokens <= this.#announced) return;
    this.#announced = Math.min(frame.tokens, this.offer.tokens);
    this.#dispatch("ready");
  }

  finished(frame: FrameOf<"FINISHED">): void {
    if (this.#state !== "READ" || frame.transferId !== this.#transferId) return;
    const { peer, tokens } = this.offer;
    if (frame.tokens !== tokens) {
      const why = `its sequence has ${frame.tokens} tokens, ours ${tokens}: do both have the same model?`;
      this.#fail("mismatched", new KvError("PROTOCOL", { peer, why }));
      return;
    }
    const { firstTokens, firstLogProbs, cachedTokens } = frame;
    this.#first = {
      firstTokens,
      ...(firstLogProbs === undefined ? {} : { firstLogProbs }),
      ...(cachedTokens === undefined ? {} : { cachedTokens }),
    };
    this.#announced = tokens;
    this.#dispatch("finished");
  }

  aborted(frame: FrameOf<"ABORT">): void {
    const awaited = this.#state === "PULL" || this.#state === "READ" || this.#state === "VERIFY";
    if (!awaited || frame.transferId !== this.#transferId) return;
    const why = `${frame.code}: ${frame.text}`;
    this.#fail("aborted", new KvError("SENDER_ABORTED", { transfer: this.#transferId, why }));
  }

  renewed(writtenMs: number): void {
    this.#confirmedMs = writtenMs;
    this.#dispatch("renewed");
  }

  leaseLost(): void {
    this.#fail("leaseLost", new KvError("GONE", { request: this.offer.requestId, peer: this.offer.peer }));
  }

  tick(nowMs: number): void {
    const reading = this.#state === "READ" || this.#state === "FINISH" || this.#state === "ORPHAN";
    if (this.#state !== "VERIFY" && (!reading || this.#pieces.running === 0)) return;
    const { stallMs } = this.#around.limits;
    if (nowMs - this.#progressMs < stallMs) return;
    const why = `no progress for ${stallMs} ms (stallMs)`;
    this.#fail("stalled", new KvError("COPY_FAILED", { transfer: this.#transferId, path: this.#path, why }));
  }

  get #verify(): VerifyMode {
    return this.#around.limits.verify;
  }

  /** The sender can't be asked any more: a sample is what has come of it. @returns whether digests alone decide now */
  #noMoreDigests(): boolean {
    this.#senderGone = true;
    if (this.#state === "VERIFY" && this.#verify === "sampled") this.#comparison.waiveMissing();
    if (!this.#needsNoLink) return false;
    this.#dispatch("digests");
    return true;
  }

  /** All digests of the sender are here: what happens to the link decides nothing any more. */
  get #needsNoLink(): boolean {
    return this.#state === "VERIFY" && this.#comparison.hasTheirs;
  }

  // --- the table ----------------------------------------------------------------------------------------------------------

  #fail(event: ReceiverEvent, error: KvError): void {
    this.#error = error;
    this.#dispatch(event);
  }

  #dispatch(event: ReceiverEvent): void {
    const from = this.#state;
    const cell = cellOf<ReceiverState, ReceiverEvent, ReceiverEffect>("receiver", receiverTable, from, event);
    this.#state = cell.next;
    const phase = phaseOf[cell.next];
    if (phase !== null) this.#times.enter(phase, this.#around.plane.nowMs());
    this.#around.observer?.({ role: "receiver", requestId: this.offer.requestId, from, event, to: cell.next });
    for (const effect of cell.effects) this.#effects[effect]();
  }

  readonly #effects: Readonly<Record<ReceiverEffect, () => void>> = {
    joinLink: () => {
      this.#link = this.#around.link();
      this.#link.join(this);
    },
    nextAttempt: () => {
      this.#transferId = nextAttempt(this.#transferId);
    },
    pull: () => {
      const { tokens, skipTokens, requestId, token } = this.offer;
      this.#pieces = new Pieces(skipTokens);
      this.#announced = skipTokens;
      const { limits } = this.#around;
      const pulled = { from: skipTokens, to: tokens, tokensPerBlock: this.#mustLink().tokensPerBlock };
      this.#comparison = new DigestComparison(rangesToVerify(limits.verify, this.#transferId, pulled));
      // The clock is read before the frame is written (I2).
      this.#pulledMs = this.#mustLink().pull(this, {
        transferId: this.#transferId,
        requestId,
        ...(token === null ? {} : { token }),
        from: skipTokens,
        to: tokens,
        reader: this.#around.reader,
        paths: ["shared_memory"],
        verify: limits.verify,
      });
    },
    takeGrant: () => {
      const grant = this.#grant as FrameOf<"GRANT">;
      const { plane, limits } = this.#around;
      this.#progressMs = plane.nowMs();
      // A PULL that waited long was kept alive by RENEWs: the sender names the one that it heard last.
      const baseMs = grant.seq === 0 ? undefined : this.#mustLink().renewalMs(grant.seq);
      this.#view = new LeaseView(grant.leaseMs, limits.strict, baseMs ?? this.#pulledMs);
      this.#source = Uint32Array.from(grant.blocks);
      this.#announced = Math.min(Math.max(grant.ready, this.#announced), this.offer.tokens);
      this.#path = grant.path;
    },
    postReads: () => this.#postReads(),
    takeBase: () => {
      this.#view?.confirmed(this.#confirmedMs);
      const accepted = this.#pieces.acceptEndedBefore(this.#confirmedMs);
      if (accepted) this.#accepted();
      else if (this.#pieces.late > 0) this.#mustLink().renewNow();
    },
    renewNow: () => this.#mustLink().renewNow(),
    acceptOrphans: () => {
      this.#pieces.acceptEndedBefore(Number.POSITIVE_INFINITY);
      this.#checkOrphan();
    },
    checkOrphan: () => this.#checkOrphan(),
    askDigests: () => this.#askDigests(),
    compareDigests: () => this.#compareDigests(),
    voidAttempt: () => this.#pieces.cancel(),
    tryAgain: () => this.#tryAgain(),
    // Still running unless the attempt that is void was granted.
    startQueueTimer: () => {
      if (this.#queueTimer === null) this.#startQueueTimer();
    },
    stopQueueTimer: () => {
      this.#queueTimer?.clear();
      this.#queueTimer = null;
    },
    startTransferTimer: () => {
      // A later attempt runs in the time of the first.
      if (this.#transferTimer === null) this.#startTransferTimer();
    },
    restartTransferTimer: () => this.#startTransferTimer(),
    tellProgress: () => this.progress.advance(this.#pieces.leading),
    complete: () => {
      this.progress.advance(this.offer.tokens);
      this.#settle("ok", this.#report(), null);
    },
    fail: () => {
      const error = this.#error ?? new KvError("INTERNAL", { where: "receiver session", why: "no cause" });
      this.#settle(statusOf(error), null, error);
    },
    writeDone: () => {
      const status = this.#outcome ?? "failed";
      this.#link?.done(this.offer, this.#transferId, status, this.#pieces.bytes);
    },
    decline: () => {
      const { requestId, token, tokens } = this.offer;
      // Nothing is held for what has not been offered yet.
      if (token === null) return;
      const { reader } = this.#around;
      const pull = { transferId: this.#transferId, requestId, token, from: tokens, to: tokens, reader, paths: [] };
      this.#around.link().decline(this.offer, { ...pull, verify: "off" }, this.#outcome ?? "cancelled");
    },
    drain: () => {
      this.#around.turns.leave(this);
      this.#link?.leave(this);
      this.#pieces.cancel();
      if (this.#pieces.unquiet === 0) this.#dispatch("quiet");
    },
    release: () => {
      this.#blocks.release();
      this.#released.resolve();
      this.#around.released(this);
      this.#around.plane.letGo();
    },
  };

  #mustLink(): PeerLink {
    if (this.#link === null) throw new KvError("INTERNAL", { where: "receiver session", why: "no link" });
    return this.#link;
  }

  /** Reads what is announced and not asked for yet, in one job, with a turn. */
  #postReads(): void {
    const fromToken = this.#pieces.posted;
    const peer = this.#link?.peer;
    const { plane, turns } = this.#around;
    if (this.#announced > fromToken && peer) {
      if (!turns.holds(this)) {
        this.#times.enter("queue", plane.nowMs());
        turns.join(this);
        return;
      }
      const piece = this.#pieces.post(this.#announced, plane.nowMs());
      this.#times.enter("move", piece.postedMs);
      if (this.#pieces.running === 1) this.#progressMs = piece.postedMs;
      const toToken = piece.toToken;
      const target = Uint32Array.from(this.#blocks.ids as readonly BlockId[]);
      const request = {
        peer,
        source: this.#source,
        target,
        fromToken,
        toToken,
        sequenceTokens: this.offer.tokens,
        replicated: this.offer.part?.replicated ?? true,
        deadlineMs: this.#deadlineMs,
      };
      const pieces = this.#pieces;
      piece.read = plane.read(request, {
        ended: (end) => {
          pieces.ended(piece, end.atMs, end.bytes);
          if (pieces === this.#pieces && !pieces.void) this.#readEnded(piece.postedMs, end, () => pieces.accept(piece));
        },
        quiet: () => {
          pieces.quiet();
          this.#dispatch("readQuiet");
        },
      });
    }
    if (this.#isComplete) this.#allAccepted();
    else if (this.#pieces.running === 0) this.#waitForPrefill(plane.nowMs());
  }

  get #isTold(): boolean {
    return this.offer.token !== null || this.#first !== null;
  }

  get #isComplete(): boolean {
    return this.#isTold && this.#pieces.accepted(this.offer.tokens);
  }

  /** All that was announced is read: others may use the turn until more is. */
  #waitForPrefill(nowMs: number): void {
    this.#times.enter("wait", nowMs);
    this.#around.turns.leave(this);
  }

  #readEnded(postedMs: number, end: ReadEnd, accept: () => void): void {
    this.#progressMs = end.atMs;
    this.#movingMs += end.movingMs;
    this.#runs += end.runs;
    this.#copies += end.pieces;
    this.#path = end.path;
    const idle = this.#pieces.posted === this.#announced && this.#announced < this.offer.tokens;
    if (idle && this.#pieces.running === 0) this.#waitForPrefill(end.atMs);
    if (end.status === "ok") {
      const sure = this.#state === "ORPHAN" || this.#view?.accepts(postedMs, end.atMs) === true;
      if (!sure) {
        this.#error = new KvError("PEER_LOST", {
          peer: this.offer.peer,
          epoch: this.#link?.target.epoch ?? "?",
          ms: Math.round(end.atMs - this.#pulledMs),
        });
        this.#dispatch("pieceLate");
        return;
      }
      accept();
      this.#accepted();
    } else if (end.status === "timed_out") {
      this.#fail("transferTimer", this.#timeout());
    } else {
      const why = `the read ended ${end.status}`;
      this.#fail("readFailed", new KvError("COPY_FAILED", { transfer: this.#transferId, path: end.path, why }));
    }
  }

  #accepted(): void {
    if (this.#isComplete) this.#allAccepted();
    else this.#dispatch("pieceAccepted");
  }

  /** All is read from pinned blocks; it is complete unless digests are to be compared. */
  #allAccepted(): void {
    if (this.#senderGone && this.#verify === "sampled") this.#comparison.waiveMissing();
    if (this.#comparison.isEmpty) this.#dispatch("allAccepted");
    else if (this.#state === "ORPHAN" && !this.#comparison.hasTheirs) this.#dispatch("orphanShort");
    else this.#dispatch("allRead");
  }

  #askDigests(): void {
    const { plane } = this.#around;
    const comparison = this.#comparison;
    this.#progressMs = plane.nowMs();
    const digested = (digests: Uint8Array): void => {
      comparison.takeOwn(digests);
      if (this.#state === "VERIFY" && this.#comparison === comparison) this.#dispatch("digests");
    };
    const blocks = Uint32Array.from(this.#blocks.ids);
    const { part, tokens: sequenceTokens } = this.offer;
    plane.digest({ blocks, ranges: comparison.ranges, sequenceTokens, part }, digested);
  }

  #compareDigests(): void {
    if (!this.#comparison.isComplete) return;
    const [first, ...more] = this.#comparison.differences();
    if (first === undefined) {
      this.#dispatch("digestsEqual");
      return;
    }
    this.#around.countMismatches(1 + more.length);
    const repeatable = !this.#differed && !this.#senderGone;
    this.#differed = true;
    const index = Math.floor(first.from / this.#mustLink().tokensPerBlock);
    const block = this.#blocks.ids[Math.floor(first.from / this.#around.tokensPerBlock)] ?? "?";
    const error = new KvError("DIGEST_MISMATCH", {
      transfer: this.#transferId,
      peer: this.offer.peer,
      index,
      block,
      source: this.#source[Math.floor(first.from / this.#mustLink().tokensPerBlock)] ?? "?",
      from: first.from,
      to: first.to,
      more: more.length,
    });
    this.#fail(repeatable ? "digestsDiffer" : "digestsDifferAgain", error);
  }

  #checkOrphan(): void {
    if (this.#isComplete) this.#allAccepted();
    else if (this.#pieces.running === 0) this.#dispatch("orphanShort");
  }

  #tryAgain(): void {
    const now = this.#around.plane.nowMs();
    // Another event may be here before it: then it must not fire into the new attempt.
    this.#retryTimer?.clear();
    this.#retryTimer = null;
    if (attemptOf(this.#transferId) + 1 >= ATTEMPTS) {
      this.#dispatch("exhausted");
    } else if (now < this.#retryAtMs) {
      this.#retryTimer = this.#around.plane.timer(this.#retryAtMs, () => this.#dispatch("retryTimer"));
    } else if (this.#pieces.unquiet === 0 && this.#link?.up === true) {
      // Old reads could overwrite what the new attempt reads, so they are all quiet before it starts.
      this.#dispatch("canPull");
    }
  }

  #startQueueTimer(): void {
    const { plane, limits } = this.#around;
    this.#queueEndsMs = plane.nowMs() + limits.queueMs;
    this.#queueTimer = plane.timer(this.#queueEndsMs, () =>
      this.#fail("queueTimer", new KvError("QUEUE_TIMEOUT", { transfer: this.#transferId, ms: limits.queueMs })),
    );
  }

  #startTransferTimer(): void {
    const { plane, limits } = this.#around;
    if (limits.transferMs === null) return;
    this.#transferTimer?.clear();
    this.#deadlineMs = plane.nowMs() + limits.transferMs;
    this.#transferTimer = plane.timer(this.#deadlineMs, () => this.#fail("transferTimer", this.#timeout()));
  }

  #timeout(): KvError {
    return new KvError("TRANSFER_TIMEOUT", { transfer: this.#transferId, ms: this.#around.limits.transferMs ?? 0 });
  }

  #report(): TransferReport {
    const now = this.#around.plane.nowMs();
    const { bytes, count } = this.#pieces;
    return {
      requestId: this.offer.requestId,
      bytes,
      blocks: this.#blocks.ids.length,
      tokens: this.offer.tokens,
      ms: now - this.#startedMs,
      queueMs: this.#times.get("queue"),
      connectMs: this.#times.get("connect"),
      waitMs: this.#times.get("wait"),
      movingMs: this.#movingMs,
      verifyMs: this.#times.get("verify"),
      gbPerS: this.#movingMs > 0 ? bytes / this.#movingMs / 1e6 : 0,
      path: this.#path,
      chunks: count,
      runs: this.#runs,
      pieces: this.#copies,
      attempts: attemptOf(this.#transferId) + 1,
      ...(this.#first === null ? {} : { first: this.#first }),
    };
  }

  #settle(outcome: DoneStatus, report: TransferReport | null, error: KvError | null): void {
    this.#outcome = outcome;
    for (const timer of [this.#queueTimer, this.#transferTimer, this.#retryTimer]) timer?.clear();
    if (report !== null) this.#settled.resolve(report);
    else if (error !== null) this.#settled.reject(error);
    this.progress.end(error);
    this.#around.settled(this, report, error);
  }
}

function statusOf(error: KvError): DoneStatus {
  if (isKvError(error, "CANCELLED")) return "cancelled";
  return isKvError(error, "TRANSFER_TIMEOUT") || isKvError(error, "QUEUE_TIMEOUT") ? "timed_out" : "failed";
}
