import { KvError } from "../errors.ts";
import type { BlockId, Epoch, TransferId } from "../ids.ts";
import type { CancelOutcome, TransferReport } from "./api.ts";
import type { DialTarget } from "./dial.ts";
import type { LinkUser } from "./link_user.ts";
import type { Progress } from "./progress.ts";
import type { DoneStatus, FrameOf } from "./protocol.ts";
import type { PullWaiter } from "./pull_turns.ts";
import type { ReceiverHouse, WantedOffer } from "./receiver_house.ts";
import {
  type ReceiverEffect,
  type ReceiverEvent,
  type ReceiverState,
  receiverTable,
  renewingStates,
} from "./receiver_table.ts";
import { ReceiverWork } from "./receiver_work.ts";
import { refusedError } from "./refused_error.ts";
import type { TransferPhase } from "./transfer_times.ts";
import { cellOf } from "./transition.ts";

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

/** One pull: makes events of what its link, its caller and its own work say, and runs the receiver's table; the work does what the table says. */
export class ReceiverSession implements LinkUser, PullWaiter {
  readonly offer: WantedOffer;
  readonly #house: ReceiverHouse;
  readonly #target: DialTarget;
  readonly #work: ReceiverWork;
  #unlisten: (() => void) | undefined;
  #state: ReceiverState = "QUEUED";

  constructor(house: ReceiverHouse, target: DialTarget, offer: WantedOffer, signal?: AbortSignal) {
    this.#house = house;
    this.#target = target;
    this.offer = offer;
    this.#work = new ReceiverWork(this, house, target);
    if (signal !== undefined) this.#listen(signal);
  }

  get state(): ReceiverState {
    return this.#state;
  }

  get progress(): Progress {
    return this.#work.progress;
  }

  get done(): Promise<TransferReport> {
    return this.#work.settled.promise;
  }

  get released(): Promise<void> {
    return this.#work.released.promise;
  }

  /** What the sender hears of it; null while it goes on. */
  get outcome(): DoneStatus | null {
    return this.#work.outcome;
  }

  /** Held only because a transport may still touch them. */
  get quarantined(): readonly BlockId[] {
    return this.#state === "DRAIN" ? this.#work.blocks.ids : [];
  }

  cancel(why: string): CancelOutcome {
    if (this.outcome !== null) return "already_complete";
    this.fail("cancel", new KvError("CANCELLED", { transfer: this.#transferId, why }));
    return this.state === "END" ? "cancelled" : "in_flight";
  }

  #listen(signal: AbortSignal): void {
    const aborted = (): void => {
      this.cancel("its signal was aborted");
    };
    this.#unlisten = () => signal.removeEventListener("abort", aborted);
    signal.addEventListener("abort", aborted, { once: true });
    if (signal.aborted) aborted();
  }

  // --- LinkUser -----------------------------------------------------------------------------------------------------------

  get renewing(): TransferId | null {
    return renewingStates.has(this.#state) ? this.#transferId : null;
  }

  get live(): TransferId | null {
    const reading = this.#state === "RETRY" && this.#work.attempt.pieces.unquiet > 0;
    return reading || renewingStates.has(this.#state) ? this.#transferId : null;
  }

  // --- PullWaiter ---------------------------------------------------------------------------------------------------------

  get peer(): Epoch {
    return this.#target.epoch;
  }

  get size(): number {
    return this.offer.tokens - this.offer.skipTokens;
  }

  /** In other states it is kept for the reads that follow. */
  turn(): void {
    if (this.#state === "QUEUED" || this.#state === "READ") this.dispatch("turn");
  }

  // --- frames and events of the link ----------------------------------------------------------------------------------------

  linkUp(): void {
    if (this.#needsNoLink) return;
    // Digests that were lost with the connection do not come again.
    const blind = this.#state === "FINISH" && !this.#work.verification.hasTheirs;
    this.dispatch(blind ? "linkUpBlind" : "linkUp");
  }

  linkLost(error: KvError): void {
    if (this.#needsNoLink) return;
    // Direct reads that are all posted may finish inside the view (lease-model.md section 3); a late one needs the connection.
    const all = this.#state === "READ" && this.#work.attempt.needsNoConnection && this.#work.isTold;
    this.fail(all ? "linkLostAllPosted" : "linkLost", error);
  }

  linkFailed(error: KvError): void {
    if (!this.#noMoreDigests()) this.fail("linkFailed", error);
  }

  staleEpoch(error: KvError): void {
    if (!this.#noMoreDigests()) this.fail("staleEpoch", error);
  }

  senderDead(error: KvError): void {
    if (this.#noMoreDigests()) return;
    // Seen dead inside the view, it died with the lease held: nobody has changed the blocks, and nobody can. Seen later, it may have
    // released them first, and given them to another request.
    const reading = this.#state === "READ" || this.#state === "FINISH";
    const unsure = reading && this.#work.attempt.view?.holds(this.#house.plane.nowMs()) !== true;
    this.fail(unsure ? "senderDeadLate" : "senderDead", error);
  }

  granted(frame: FrameOf<"GRANT">): void {
    if (this.#state !== "PULL" || frame.transferId !== this.#transferId) return;
    this.#work.grant = frame;
    this.dispatch("granted");
    this.#work.grant = null;
  }

  refused(frame: FrameOf<"REFUSE">): void {
    if (this.#state !== "PULL" || frame.transferId !== this.#transferId) return;
    this.#work.retryAtMs = this.#house.plane.nowMs() + frame.retryAfterMs;
    const inTime = frame.code === "BUSY" && this.#work.retryAtMs < this.#work.timers.queueEndsMs;
    this.fail(inTime ? "refusedBusy" : "refused", refusedError(frame, this.offer));
  }

  ready(frame: FrameOf<"READY">): void {
    const awaited = this.#state === "READ" || this.#state === "VERIFY";
    if (!awaited || frame.transferId !== this.#transferId) return;
    if (this.#work.verification.take(frame)) this.#work.progressMs = this.#house.plane.nowMs();
    if (this.#state === "VERIFY") this.dispatch("digests");
    else if (this.#work.attempt.announce(frame.tokens, frame.layers)) this.dispatch("ready");
  }

  finished(frame: FrameOf<"FINISHED">): void {
    if (this.#state !== "READ" || frame.transferId !== this.#transferId) return;
    const { peer, tokens } = this.offer;
    if (frame.tokens !== tokens) {
      const why = `its sequence has ${frame.tokens} tokens, ours ${tokens}: do both have the same model?`;
      this.fail("mismatched", new KvError("PROTOCOL", { peer, why }));
      return;
    }
    const { firstTokens, firstLogProbs, cachedTokens } = frame;
    this.#work.first = {
      firstTokens,
      ...(firstLogProbs === undefined ? {} : { firstLogProbs }),
      ...(cachedTokens === undefined ? {} : { cachedTokens }),
    };
    this.#work.attempt.announce(tokens);
    this.dispatch("finished");
  }

  aborted(frame: FrameOf<"ABORT">): void {
    const awaited = this.#state === "PULL" || this.#state === "READ" || this.#state === "VERIFY";
    if (!awaited || frame.transferId !== this.#transferId) return;
    const why = `${frame.code}: ${frame.text}`;
    this.fail("aborted", new KvError("SENDER_ABORTED", { transfer: this.#transferId, why }));
  }

  renewed(writtenMs: number): void {
    this.#work.confirmedMs = writtenMs;
    this.dispatch("renewed");
  }

  leaseLost(): void {
    this.fail("leaseLost", new KvError("GONE", { request: this.offer.requestId, peer: this.offer.peer }));
  }

  tick(nowMs: number): void {
    const reading = this.#state === "READ" || this.#state === "FINISH" || this.#state === "ORPHAN";
    if (this.#state !== "VERIFY" && (!reading || this.#work.attempt.pieces.running === 0)) return;
    const { stallMs } = this.#house.limits;
    if (nowMs - this.#work.progressMs < stallMs) return;
    const why = `no progress for ${stallMs} ms (stallMs)`;
    this.fail("stalled", new KvError("COPY_FAILED", { transfer: this.#transferId, path: this.#work.tally.path, why }));
  }

  /** The sender can't be asked any more: a sample is what has come of it. @returns whether digests alone decide now */
  #noMoreDigests(): boolean {
    this.#work.verification.senderIsGone();
    if (this.#state === "VERIFY") this.#work.verification.waiveMissing();
    if (!this.#needsNoLink) return false;
    this.dispatch("digests");
    return true;
  }

  /** All digests of the sender are here: what happens to the link decides nothing any more. */
  get #needsNoLink(): boolean {
    return this.#state === "VERIFY" && this.#work.verification.hasTheirs;
  }

  // --- the table ----------------------------------------------------------------------------------------------------------

  /** @internal For its work. */
  fail(event: ReceiverEvent, error: KvError): void {
    this.#work.error = error;
    this.dispatch(event);
  }

  /** @internal For its work. */
  dispatch(event: ReceiverEvent): void {
    const from = this.#state;
    const cell = cellOf<ReceiverState, ReceiverEvent, ReceiverEffect>("receiver", receiverTable, from, event);
    this.#state = cell.next;
    const phase = phaseOf[cell.next];
    if (phase !== null) this.#work.tally.enter(phase, this.#house.plane.nowMs());
    this.#house.observer?.({ role: "receiver", requestId: this.offer.requestId, from, event, to: cell.next });
    for (const effect of cell.effects) this.#work[effect]();
  }

  /** @internal For its work: its outcome is told. */
  settled(report: TransferReport | null, error: KvError | null): void {
    this.#unlisten?.();
    this.#house.settled(this.#target.epoch, report, error);
  }

  get #transferId(): TransferId {
    return this.#work.attempt.transferId;
  }
}
