import { KvError } from "../errors.ts";
import { attemptOf, type Epoch, type RequestId, type TransferId } from "../ids.ts";
import type { DataPlane, PlaneTimer } from "./data_plane.ts";
import type { SessionObserver } from "./observer.ts";
import type { ReaderAsked } from "./offer.ts";
import type { SenderFrame } from "./protocol.ts";
import { refusalFrame } from "./sender_house.ts";
import { sameTransfer } from "./sender_session.ts";
import { type WaitEffect, type WaitEvent, type WaitState, waitTable } from "./sender_table.ts";
import { Settled } from "./settled.ts";
import { cellOf } from "./transition.ts";

/** Refused requests that are remembered, so that a PULL that comes after the refusal does not wait for its timer. */
const REMEMBERED = 1024;

export interface WaitingSurroundings {
  readonly plane: DataPlane;
  readonly epoch: Epoch;
  /** How long a PULL waits for its offer. */
  readonly queueMs: number;
  readonly maxOpen: number;
  readonly write: (receiver: Epoch, frame: SenderFrame) => boolean;
  readonly countDropped: (what: string) => void;
  readonly observer: SessionObserver | undefined;
}

interface WaitingHouse {
  bound(waiting: WaitingPull, before: TransferId, now: TransferId): void;
  over(waiting: WaitingPull): void;
}

/** A PULL without a token that came before its offer: runs the rows WAIT of the sender's table. */
class WaitingPull {
  readonly requestId: RequestId;
  readonly #around: WaitingSurroundings;
  readonly #house: WaitingHouse;
  #state: WaitState = "NONE";
  #asked: ReaderAsked;
  #asking: ReaderAsked;
  #timer: PlaneTimer | null = null;
  #seq = 0;

  constructor(around: WaitingSurroundings, requestId: RequestId, asked: ReaderAsked, house: WaitingHouse) {
    this.#around = around;
    this.requestId = requestId;
    this.#asked = asked;
    this.#asking = asked;
    this.#house = house;
    this.dispatch("pull");
  }

  get asked(): ReaderAsked {
    return this.#asked;
  }

  pull(asked: ReaderAsked): void {
    this.#asking = asked;
    const { receiver, transferId } = this.#asked;
    const again = receiver === asked.receiver && sameTransfer(transferId, asked.transferId);
    if (!asked.sameLayout) this.dispatch("pullLayout");
    else if (again && attemptOf(asked.transferId) <= attemptOf(transferId)) this.dispatch("pullRepeated");
    else this.dispatch("pullReplaces");
  }

  renew(seq: number): void {
    this.#seq = seq;
    this.dispatch("renew");
  }

  dispatch(event: WaitEvent): void {
    const from = this.#state;
    const { next, effects } = cellOf<WaitState, WaitEvent, WaitEffect>("waiting pull", waitTable, from, event);
    this.#state = next;
    this.#around.observer?.({ role: "sender", requestId: this.requestId, from, event, to: next });
    for (const effect of effects) this.#effects[effect]();
  }

  readonly #effects: Readonly<Record<WaitEffect, () => void>> = {
    bindReader: () => {
      this.#house.bound(this, this.#asked.transferId, this.#asking.transferId);
      this.#asked = this.#asking;
    },
    startQueueTimer: () => {
      const { plane, queueMs } = this.#around;
      this.#timer?.clear();
      this.#timer = plane.timer(plane.nowMs() + queueMs, () => this.dispatch("queueTimer"));
    },
    noteRenewal: () => {
      this.#asked = { ...this.#asked, heard: this.#seq };
    },
    endWait: () => {
      this.#timer?.clear();
      this.#house.over(this);
    },
    refuseGone: () => this.#refuse("refuseGone", this.#asked),
    refuseLayout: () => this.#refuse("refuseLayout", this.#asking),
    refuseDraining: () => this.#refuse("refuseDraining", this.#asked),
    refuseQueueTimeout: () => this.#refuse("refuseQueueTimeout", this.#asked),
    countDropped: () => this.#around.countDropped("sender in WAIT"),
  };

  #refuse(refusal: Parameters<typeof refusalFrame>[0], asked: ReaderAsked): void {
    const ms = refusal === "refuseQueueTimeout" ? this.#around.queueMs : 0;
    this.#around.write(asked.receiver, refusalFrame(refusal, this.#around.epoch, asked, ms));
  }
}

/** PULLs that came before their offers (generation-first), for each request one a reader rank. */
export class WaitingPulls {
  readonly #around: WaitingSurroundings;
  readonly #byRequest = new Map<RequestId, Map<number, WaitingPull>>();
  readonly #byTransfer = new Map<TransferId, WaitingPull>();
  readonly #refused = new Set<RequestId>();
  readonly #awaited = new Map<RequestId, Set<(error: KvError | null) => void>>();
  #draining = false;

  constructor(around: WaitingSurroundings) {
    this.#around = around;
  }

  get open(): number {
    return this.#byTransfer.size;
  }

  /** A PULL without token of a proven receiver, for a request that no offer stands for. */
  pull(requestId: RequestId, asked: ReaderAsked): void {
    const { write, epoch, maxOpen } = this.#around;
    const known = this.#byRequest.get(requestId);
    const waiting = known?.get(asked.rank);
    if (waiting !== undefined) waiting.pull(asked);
    else if (this.#draining) write(asked.receiver, refusalFrame("refuseDraining", epoch, asked, 0));
    else if (!asked.sameLayout) write(asked.receiver, refusalFrame("refuseLayout", epoch, asked, 0));
    else if (this.#refused.has(requestId)) write(asked.receiver, refusalFrame("refuseGone", epoch, asked, 0));
    else if (this.open >= maxOpen) write(asked.receiver, refusalFrame("refuseBusy", epoch, asked, FULL_RETRY_MS));
    else {
      const ranks = known ?? new Map<number, WaitingPull>();
      this.#byRequest.set(requestId, ranks);
      const house: WaitingHouse = {
        bound: (bound, before, now) => {
          this.#byTransfer.delete(before);
          this.#byTransfer.set(now, bound);
        },
        over: (over) => {
          this.#byTransfer.delete(over.asked.transferId);
          ranks.delete(asked.rank);
          if (ranks.size === 0 && this.#byRequest.get(requestId) === ranks) this.#byRequest.delete(requestId);
        },
      };
      ranks.set(asked.rank, new WaitingPull(this.#around, requestId, asked, house));
      this.#tell(requestId, null);
    }
  }

  /** The offer stands: what has waited for it, which is served now. */
  take(requestId: RequestId): readonly ReaderAsked[] {
    this.#refused.delete(requestId);
    return this.#of(requestId).map((waiting) => {
      const { asked } = waiting;
      waiting.dispatch("send");
      return asked;
    });
  }

  /** There will be no offer. */
  refuse(requestId: RequestId): void {
    this.#refused.add(requestId);
    for (const oldest of this.#refused) {
      if (this.#refused.size <= REMEMBERED) break;
      this.#refused.delete(oldest);
    }
    for (const waiting of this.#of(requestId)) waiting.dispatch("cancel");
  }

  /** Whether this attempt waits here. */
  renew(receiver: Epoch, id: TransferId, seq: number): boolean {
    const waiting = this.#find(receiver, id);
    waiting?.renew(seq);
    return waiting !== undefined;
  }

  done(receiver: Epoch, id: TransferId): boolean {
    const waiting = this.#find(receiver, id);
    waiting?.dispatch("done");
    return waiting !== undefined;
  }

  hello(receiver: Epoch, named: ReadonlySet<TransferId>): void {
    for (const waiting of [...this.#byTransfer.values()]) {
      const { asked } = waiting;
      if (asked.receiver === receiver && !named.has(asked.transferId)) waiting.dispatch("helloWithout");
    }
  }

  /** No offer will be made any more. */
  drain(error: KvError): void {
    this.#draining = true;
    for (const waiting of [...this.#byTransfer.values()]) waiting.dispatch("drain");
    for (const requestId of [...this.#awaited.keys()]) this.#tell(requestId, error);
  }

  /** Resolves when a PULL waits for this request. Rejects with QUEUE_TIMEOUT, the signal's reason, or what `drain` was given. */
  arrival(requestId: RequestId, signal: AbortSignal | undefined): Promise<void> {
    if (this.#byRequest.has(requestId)) return Promise.resolve();
    const { plane, queueMs } = this.#around;
    const arrived = new Settled<void>();
    const tellers = this.#awaited.get(requestId) ?? new Set();
    this.#awaited.set(requestId, tellers);
    const end = (error: Error | null): void => {
      timer.clear();
      signal?.removeEventListener("abort", aborted);
      tellers.delete(end);
      if (tellers.size === 0) this.#awaited.delete(requestId);
      if (error === null) arrived.resolve();
      else arrived.reject(error);
    };
    const aborted = (): void => end(signal?.reason as Error);
    const timer = plane.timer(plane.nowMs() + queueMs, () =>
      end(new KvError("QUEUE_TIMEOUT", { transfer: `of request ${requestId}`, ms: queueMs })),
    );
    tellers.add(end);
    signal?.addEventListener("abort", aborted, { once: true });
    if (signal?.aborted === true) aborted();
    return arrived.promise;
  }

  #tell(requestId: RequestId, error: KvError | null): void {
    for (const tell of [...(this.#awaited.get(requestId) ?? [])]) tell(error);
  }

  #of(requestId: RequestId): WaitingPull[] {
    return [...(this.#byRequest.get(requestId)?.values() ?? [])];
  }

  #find(receiver: Epoch, id: TransferId): WaitingPull | undefined {
    const waiting = this.#byTransfer.get(id);
    return waiting?.asked.receiver === receiver ? waiting : undefined;
  }
}

/** As many wait as may: asked again after this. */
const FULL_RETRY_MS = 1000;
