import { KvError } from "../errors.ts";
import { attemptOf, type Epoch, type RequestId, type TransferId } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { CancelOutcome, FirstTokens } from "./api.ts";
import type { PlaneLease } from "./data_plane.ts";
import { equalTokens } from "./proof.ts";
import type { AbortCode, FrameOf } from "./protocol.ts";
import type { PartlyReady, PullAsked, SenderHouse, SessionOwner, SessionStart } from "./sender_house.ts";
import { leasedStates, type SenderEffect, type SenderEvent, type SenderState, senderTable } from "./sender_table.ts";
import { SenderWork } from "./sender_work.ts";
import { cellOf } from "./transition.ts";

export const sameTransfer = (left: TransferId, right: TransferId): boolean => left.slice(0, 32) === right.slice(0, 32);

/** An offer as one rank reads it: makes events of what its offer, its receiver and its own work say, and runs the sender's table. */
export class SenderSession {
  readonly #house: SenderHouse;
  readonly #owner: SessionOwner;
  readonly #work: SenderWork;
  #state: SenderState = "NONE";

  constructor(house: SenderHouse, owner: SessionOwner, start: SessionStart) {
    this.#house = house;
    this.#owner = owner;
    this.#work = new SenderWork(this, house, owner, start);
    this.dispatch("send");
    if (start.ready === owner.tokens) this.dispatch("prefillEnded");
  }

  get requestId(): RequestId {
    return this.#owner.requestId;
  }

  get blocks(): BlockHold {
    return this.#work.blocks;
  }

  get state(): SenderState {
    return this.#state;
  }

  get leased(): boolean {
    return leasedStates.has(this.#state);
  }

  get receiver(): Epoch | null {
    return this.#work.reader?.receiver ?? null;
  }

  get transferId(): TransferId | null {
    return this.#work.reader?.transferId ?? null;
  }

  get lease(): PlaneLease | null {
    return this.#work.lease;
  }

  /** Tokens [0, n) are visible: more than before. */
  ready(tokens: number): void {
    this.#work.ready = tokens;
    this.#work.ahead = null;
    this.dispatch(tokens === this.#owner.tokens ? "prefillEnded" : "progress");
  }

  /** Of a chunk the first layers are visible: said to a reader that can take them so, and else left unsaid. */
  readyAhead(ahead: PartlyReady): void {
    this.#work.ahead = ahead;
    if (this.#work.reader?.byLayer === true) this.dispatch("progress");
  }

  /** All tokens are visible, and this is what came of the prompt. */
  finish(first: FirstTokens): void {
    this.#work.first = first;
    this.#work.ready = this.#owner.tokens;
    this.#work.ahead = null;
    this.dispatch("finished");
  }

  cancel(why: string): CancelOutcome {
    if (this.#state === "END") return "already_complete";
    const transfer = this.#work.reader?.transferId ?? `of request ${this.requestId}`;
    this.#end(new KvError("CANCELLED", { transfer, why }), "CANCELLED");
    return this.state === "END" ? "cancelled" : "in_flight";
  }

  /** Its KV can't be had: whoever reads it hears why. */
  fail(error: KvError): void {
    if (this.#state !== "END") this.#end(error, "FAILED");
  }

  /** The first cause stays: a second end of an ending session explains nothing. */
  #end(cause: KvError, code: AbortCode): void {
    if (this.#work.cause === null) {
      this.#work.cause = cause;
      this.#work.abortCode = code;
    }
    this.dispatch("cancel");
  }

  pull(asked: PullAsked): void {
    this.#work.asking = asked;
    this.dispatch(this.#classify(asked));
    this.#work.asking = null;
  }

  /** A RENEW that names this attempt; its lease is put on `extending` if it may go on. */
  renew(extending: PlaneLease[]): void {
    this.#work.extending = extending;
    this.dispatch("renew");
    this.#work.extending = null;
  }

  /** The data plane has extended the lease; the id goes on `held` if the receiver may be told so. */
  renewed(held: TransferId[]): void {
    this.#work.held = held;
    this.dispatch("renewed");
    this.#work.held = null;
  }

  receiverDone(frame: FrameOf<"DONE">): void {
    this.#work.doneFrame = frame;
    this.dispatch("done");
    this.#work.doneFrame = null;
  }

  /** The receiver's epoch said HELLO and reads this attempt no more. */
  helloWithout(): void {
    this.dispatch("helloWithout");
  }

  #classify(asked: PullAsked): SenderEvent {
    if (asked.token !== null && !equalTokens(asked.token, this.#owner.token)) return "pullBadToken";
    if (asked.draining) return "pullDraining";
    if (!asked.sameLayout) return "pullLayout";
    if (asked.taken === true) return "pullOther";
    const reader = this.#work.reader;
    const again = reader?.receiver === asked.receiver && sameTransfer(reader.transferId, asked.transferId);
    if (!again) return this.leased ? "pullOther" : "pull";
    if (attemptOf(asked.transferId) <= attemptOf(reader.transferId)) return "pullRepeated";
    return this.leased ? "pullHigher" : "pull";
  }

  /** @internal For its work. */
  dispatch(event: SenderEvent): void {
    const from = this.#state;
    const { next, effects } = cellOf<SenderState, SenderEvent, SenderEffect>("sender", senderTable, from, event);
    this.#state = next;
    this.#house.observer?.({ role: "sender", requestId: this.requestId, from, event, to: next });
    for (const effect of effects) this.#work[effect]();
  }
}
