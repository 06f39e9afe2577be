import { isKvError, KvError } from "../errors.ts";
import { attemptOf, newTransferId, nextAttempt } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { FirstTokens, TransferReport } from "./api.ts";
import type { ReadEnd } from "./data_plane.ts";
import type { DialTarget } from "./dial.ts";
import type { PeerLink } from "./peer_link.ts";
import type { Piece } from "./pieces.ts";
import { Progress } from "./progress.ts";
import type { DoneStatus, FrameOf } from "./protocol.ts";
import { type AttemptReads, PullAttempt } from "./pull_attempt.ts";
import type { ReceiverHouse, WantedOffer } from "./receiver_house.ts";
import type { ReceiverSession } from "./receiver_session.ts";
import type { ReceiverEffect } from "./receiver_table.ts";
import { ReceiverTally } from "./receiver_tally.ts";
import { ReceiverTimers } from "./receiver_timers.ts";
import { type BlockSizes, ReceiverVerification } from "./receiver_verification.ts";
import { Settled } from "./settled.ts";
import { NO_DIGESTS } from "./verification.ts";

const ATTEMPTS = 3;

/** What a pull does: an effect of the receiver's table is a method of the same name. */
export class ReceiverWork implements Readonly<Record<ReceiverEffect, () => void>>, AttemptReads {
  readonly progress = new Progress();
  readonly settled = new Settled<TransferReport>();
  readonly released = new Settled<void>();
  readonly blocks: BlockHold;
  readonly tally: ReceiverTally;
  readonly timers: ReceiverTimers;
  readonly verification: ReceiverVerification;
  readonly #session: ReceiverSession;
  readonly #house: ReceiverHouse;
  readonly #target: DialTarget;
  attempt: PullAttempt;
  /** When a read was posted, or something came of one, or of its digests. */
  progressMs = 0;
  retryAtMs = 0;
  first: FirstTokens | null = null;
  outcome: DoneStatus | null = null;
  #link: PeerLink | null = null;
  // What the event at hand carries.
  error: KvError | null = null;
  grant: FrameOf<"GRANT"> | null = null;
  confirmedMs = 0;

  constructor(session: ReceiverSession, house: ReceiverHouse, target: DialTarget) {
    const { plane, limits } = house;
    this.#session = session;
    this.#house = house;
    this.#target = target;
    this.blocks = session.offer.blocks.share();
    this.tally = new ReceiverTally(plane.nowMs());
    this.timers = new ReceiverTimers(plane, limits);
    this.verification = new ReceiverVerification(limits.verify);
    this.attempt = new PullAttempt(newTransferId(), session.offer, house.layers);
    plane.hold();
    this.startQueueTimer();
  }

  /** Its sender has said all that it waits for. */
  get isTold(): boolean {
    return this.#offer.token !== null || this.first !== null;
  }

  get #offer(): WantedOffer {
    return this.#session.offer;
  }

  get #isComplete(): boolean {
    return this.isTold && this.attempt.readAll;
  }

  get #sizes(): BlockSizes {
    return { own: this.#house.tokensPerBlock, sender: this.#mustLink().tokensPerBlock };
  }

  #mustLink(): PeerLink {
    if (this.#link === null) throw new KvError("INTERNAL", { where: "receiver session", why: "no link" });
    return this.#link;
  }

  // --- asking -------------------------------------------------------------------------------------------------------------

  joinLink(): void {
    this.#link = this.#house.link(this.#target);
    this.#link.join(this.#session);
  }

  nextAttempt(): void {
    this.attempt = new PullAttempt(nextAttempt(this.attempt.transferId), this.#offer, this.#house.layers);
  }

  pull(): void {
    const { tokens: to, skipTokens: from, requestId, token } = this.#offer;
    const { limits, reader } = this.#house;
    const { transferId } = this.attempt;
    this.verification.begin(this.attempt, from, to, this.#sizes);
    // The clock is read before the frame is written (I2).
    this.attempt.pulledMs = this.#mustLink().pull(this.#session, {
      transferId,
      requestId,
      ...(token === null ? {} : { token }),
      from,
      to,
      reader,
      paths: [this.#mustLink().path],
      verify: limits.verify,
      ...(readsLayers(this.#mustLink().path) ? { readyIn: "layers" as const } : {}),
    });
  }

  takeGrant(): void {
    const grant = this.grant as FrameOf<"GRANT">;
    this.progressMs = this.#house.plane.nowMs();
    const renewalMs = grant.seq === 0 ? undefined : this.#mustLink().renewalMs(grant.seq);
    this.attempt.granted(grant, this.#house.limits.strict, renewalMs);
    this.tally.granted(grant.path);
  }

  renewNow(): void {
    this.#mustLink().renewNow();
  }

  decline(): void {
    const { requestId, token, tokens } = this.#offer;
    const { asked } = this.attempt;
    if (token === null) {
      // Nothing is held for what has not been offered yet.
      if (asked) this.writeDone();
      return;
    }
    // The sender may hold a lease for the attempt that was asked for, or never have heard of it: a higher one ends either. The old one
    // stays the session's: its reads may still run.
    const transferId = asked ? nextAttempt(this.attempt.transferId) : this.attempt.transferId;
    const { reader } = this.#house;
    const pull = { transferId, requestId, token, from: tokens, to: tokens, reader, paths: [] };
    const link = this.#house.link(this.#target);
    link.decline(this.#offer, { ...pull, verify: "off" }, this.outcome ?? "cancelled");
  }

  writeDone(): void {
    const status = this.outcome ?? "failed";
    this.#link?.done(this.#offer, this.attempt.transferId, status, this.attempt.pieces.bytes);
  }

  // --- reads --------------------------------------------------------------------------------------------------------------

  /** With a turn. */
  postReads(): void {
    const { plane, turns } = this.#house;
    const { pieces } = this.attempt;
    const peer = this.#link?.peer;
    if (this.attempt.hasMore && peer) {
      if (!turns.holds(this.#session)) {
        this.tally.enter("queue", plane.nowMs());
        turns.join(this.#session);
        return;
      }
      const target = Uint32Array.from(this.blocks.ids);
      const replicated = this.#offer.part?.replicated ?? true;
      const place = { peer, target, replicated, deadlineMs: this.timers.deadlineMs };
      const wasIdle = pieces.running === 0;
      const postedMs = this.attempt.post(plane, place, this);
      this.tally.enter("move", postedMs);
      if (wasIdle) this.progressMs = postedMs;
    }
    if (this.#isComplete) this.#allAccepted();
    else if (pieces.running === 0) this.#waitForPrefill(plane.nowMs());
  }

  /** All that was announced is read: others may use the turn until more is. */
  #waitForPrefill(nowMs: number): void {
    this.tally.enter("wait", nowMs);
    this.#house.turns.leave(this.#session);
  }

  readEnded(attempt: PullAttempt, piece: Piece, end: ReadEnd): void {
    if (attempt !== this.attempt) return;
    this.progressMs = end.atMs;
    this.tally.moved(end);
    if (attempt.waitsForMore) this.#waitForPrefill(end.atMs);
    if (end.status === "ok") {
      const sure = this.#session.state === "ORPHAN" || attempt.view?.accepts(piece.postedMs, end.atMs) === true;
      if (sure) {
        attempt.pieces.accept(piece);
        this.#accepted();
        return;
      }
      const ms = Math.round(end.atMs - attempt.pulledMs);
      this.error = new KvError("PEER_LOST", { peer: this.#offer.peer, epoch: this.#target.epoch, ms });
      this.#session.dispatch("pieceLate");
    } else if (end.status === "timed_out") {
      this.#timedOut();
    } else {
      const why = `the read ended ${end.status}`;
      this.#session.fail(
        "readFailed",
        new KvError("COPY_FAILED", { transfer: this.attempt.transferId, path: end.path, why }),
      );
    }
  }

  readQuiet(): void {
    this.#session.dispatch("readQuiet");
  }

  #accepted(): void {
    if (this.#isComplete) {
      this.#allAccepted();
      return;
    }
    // Only the first token is missing: what is to be compared then is computed meanwhile.
    if (this.attempt.readAll && !this.verification.isEmpty) this.#askOwnDigests();
    this.#session.dispatch("pieceAccepted");
  }

  /** All is read from pinned blocks; it is complete unless digests are to be compared. */
  #allAccepted(): void {
    this.verification.waiveMissing();
    if (this.verification.isEmpty) this.#session.dispatch("allAccepted");
    else if (this.#session.state === "ORPHAN" && !this.verification.hasTheirs) this.#session.dispatch("orphanShort");
    else this.#session.dispatch("allRead");
  }

  askDigests(): void {
    this.progressMs = this.#house.plane.nowMs();
    this.#askOwnDigests();
    if (this.verification.isComplete) this.#session.dispatch("digests");
  }

  #askOwnDigests(): void {
    const { part, tokens: sequenceTokens } = this.#offer;
    this.verification.askOwn(this.#house.plane, { blocks: this.blocks.ids, sequenceTokens, part }, () => {
      if (this.#session.state === "VERIFY") this.#session.dispatch("digests");
    });
  }

  compareDigests(): void {
    const { peer, tokens } = this.#offer;
    if (this.verification.failed) {
      const failed = { transfer: this.attempt.transferId, path: this.tally.path, why: NO_DIGESTS };
      this.#session.fail("digestsDifferAgain", new KvError("COPY_FAILED", failed));
      return;
    }
    const read = { peer, blocks: this.blocks.ids, attempt: this.attempt, tokens, sizes: this.#sizes };
    const mismatch = this.verification.compare(read);
    if (mismatch === undefined) return;
    if (mismatch === null) {
      this.#session.dispatch("digestsEqual");
      return;
    }
    this.#house.countMismatches(mismatch.blocks);
    this.#session.fail(mismatch.repeatable ? "digestsDiffer" : "digestsDifferAgain", mismatch.error);
  }

  checkOrphan(): void {
    if (this.#isComplete) this.#allAccepted();
    else if (this.attempt.pieces.running === 0) this.#session.dispatch("orphanShort");
  }

  takeBase(): void {
    const { view, pieces } = this.attempt;
    view?.confirmed(this.confirmedMs);
    const accepted = pieces.acceptEndedBefore(this.confirmedMs);
    if (accepted) this.#accepted();
    else if (pieces.late > 0) this.renewNow();
  }

  acceptOrphans(): void {
    this.attempt.pieces.acceptEndedBefore(Number.POSITIVE_INFINITY);
    // Others may still run: what counts now is not told with them.
    this.tellProgress();
    this.checkOrphan();
  }

  voidAttempt(): void {
    this.attempt.pieces.cancel();
  }

  tellProgress(): void {
    this.progress.advance(this.attempt.pieces.leading);
  }

  // --- time and end -------------------------------------------------------------------------------------------------------

  tryAgain(): void {
    // Another event may be here before it: then it must not fire into the new attempt.
    this.timers.stopRetry();
    if (attemptOf(this.attempt.transferId) + 1 >= ATTEMPTS) {
      this.#session.dispatch("exhausted");
    } else if (this.#house.plane.nowMs() < this.retryAtMs) {
      this.timers.startRetry(this.retryAtMs, () => this.#session.dispatch("retryTimer"));
    } else if (this.attempt.pieces.unquiet === 0 && this.#link?.up === true) {
      // Old reads could overwrite what the new attempt reads, so they are all quiet before it starts.
      this.#session.dispatch("canPull");
    }
  }

  /** Still running unless the attempt that is void was granted. */
  startQueueTimer(): void {
    this.timers.startQueue(() => this.#queueTimedOut());
  }

  stopQueueTimer(): void {
    this.timers.stopQueue();
  }

  startTransferTimer(): void {
    this.timers.startTransfer(() => this.#timedOut());
  }

  restartTransferTimer(): void {
    this.timers.restartTransfer(() => this.#timedOut());
  }

  complete(): void {
    this.progress.advance(this.#offer.tokens);
    this.#settle("ok", this.#report(), null);
  }

  fail(): void {
    const error = this.error ?? new KvError("INTERNAL", { where: "receiver session", why: "no cause" });
    this.#settle(statusOf(error), null, error);
  }

  drain(): void {
    const { pieces } = this.attempt;
    this.#house.turns.leave(this.#session);
    this.#link?.leave(this.#session);
    pieces.cancel();
    if (pieces.unquiet === 0) this.#session.dispatch("quiet");
  }

  release(): void {
    this.blocks.release();
    this.released.resolve();
    this.#house.released(this.#session);
    this.#house.plane.letGo();
  }

  #queueTimedOut(): void {
    const { queueMs: ms } = this.#house.limits;
    this.#session.fail("queueTimer", new KvError("QUEUE_TIMEOUT", { transfer: this.attempt.transferId, ms }));
  }

  #timedOut(): void {
    const ms = this.#house.limits.transferMs ?? 0;
    this.#session.fail("transferTimer", new KvError("TRANSFER_TIMEOUT", { transfer: this.attempt.transferId, ms }));
  }

  #report(): TransferReport {
    const { requestId, tokens } = this.#offer;
    const { bytes, count: chunks } = this.attempt.pieces;
    const blocks = this.blocks.ids.length;
    const attempts = attemptOf(this.attempt.transferId) + 1;
    const pulled = { requestId, tokens, blocks, bytes, chunks, attempts, first: this.first };
    return this.tally.report(this.#house.plane.nowMs(), pulled);
  }

  #settle(outcome: DoneStatus, report: TransferReport | null, error: KvError | null): void {
    this.outcome = outcome;
    this.timers.clear();
    if (report !== null) this.settled.resolve(report);
    else if (error !== null) this.settled.reject(error);
    this.progress.end(error);
    this.#session.settled(report, error);
  }
}

/** Others move whole chunks: their plans know no layers. */
const readsLayers = (path: string): boolean => path === "shared_memory";

function statusOf(error: KvError): DoneStatus {
  if (isKvError(error, "CANCELLED")) return "cancelled";
  return isKvError(error, "TRANSFER_TIMEOUT") || isKvError(error, "QUEUE_TIMEOUT") ? "timed_out" : "failed";
}
