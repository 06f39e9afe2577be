import { attemptOf, type Epoch, type RequestId, type TransferId } from "../../src/ids.ts";
import type { ReaderSide } from "../../src/transceiver/offers.ts";
import type { FrameOf, RefuseCode } from "../../src/transceiver/protocol.ts";
import { sameTransfer } from "../../src/transceiver/sender_session.ts";
import type { SenderAround } from "./sender_duties.ts";

/** A PULL that waits for its offer. */
export interface Wait {
  readonly receiver: Epoch;
  readonly pull: FrameOf<"PULL">;
  readonly side: ReaderSide;
  readonly endsMs: number;
  /** Of the last RENEW that named it. */
  seq: number;
}

/** Which PULLs wait at a sender, by the frames that it has heard and the answers that it gave; each gets one. */
export class WaitingDuties {
  readonly #around: SenderAround;
  readonly #all = new Map<string, Wait>();
  readonly #refused = new Set<RequestId>();
  readonly #arrivals = new Set<{ readonly endsMs: number }>();
  /** Whose sessions say that they wait. */
  #saying = 0;

  constructor(around: SenderAround) {
    this.#around = around;
  }

  get size(): number {
    return this.#all.size;
  }

  get deadlines(): number[] {
    return [...this.#all.values(), ...this.#arrivals].map(({ endsMs }) => endsMs);
  }

  /** What a PULL without token hears where no offer stands. */
  answerTo(receiver: Epoch, frame: FrameOf<"PULL">, side: ReaderSide, draining: boolean): RefuseCode | "waits" | null {
    const known = this.#all.get(placeOf(frame));
    if (known !== undefined) {
      if (!side.sameLayout) return "LAYOUT";
      const again = known.receiver === receiver && sameTransfer(known.pull.transferId, frame.transferId);
      return again && attemptOf(frame.transferId) <= attemptOf(known.pull.transferId) ? null : "waits";
    }
    if (draining) return "DRAINING";
    if (!side.sameLayout) return "LAYOUT";
    return this.#refused.has(frame.requestId) ? "GONE" : "waits";
  }

  /** From now on, also in the place of another. */
  wait(receiver: Epoch, pull: FrameOf<"PULL">, side: ReaderSide): void {
    const { plane, limits } = this.#around;
    this.#all.set(placeOf(pull), { receiver, pull, side, endsMs: plane.nowMs() + limits.offerMs, seq: 0 });
  }

  find(receiver: Epoch, id: TransferId): Wait | undefined {
    return [...this.#all.values()].find((one) => one.receiver === receiver && one.pull.transferId === id);
  }

  forget(wait: Wait): void {
    this.#all.delete(placeOf(wait.pull));
  }

  /** The offer stands. */
  take(requestId: RequestId): Wait[] {
    this.#refused.delete(requestId);
    const taken = [...this.#all.values()].filter(({ pull }) => pull.requestId === requestId);
    for (const wait of taken) this.forget(wait);
    return taken;
  }

  greeted(receiver: Epoch, live: ReadonlySet<TransferId>): void {
    for (const wait of [...this.#all.values()]) {
      if (wait.receiver === receiver && !live.has(wait.pull.transferId)) this.forget(wait);
    }
  }

  /** There will be no offer: all that wait for it are told. */
  refusing(requestId: RequestId): void {
    this.#refused.add(requestId);
  }

  /** A REFUSE was written, perhaps to one of these. */
  refused(id: TransferId, code: RefuseCode, draining: boolean): void {
    const wait = [...this.#all.values()].find(({ pull }) => pull.transferId === id);
    if (wait === undefined) return;
    this.forget(wait);
    const gone = this.#refused.has(wait.pull.requestId);
    const expected = draining ? "DRAINING" : gone ? "GONE" : "QUEUE_TIMEOUT";
    if (code !== expected) this.#around.broken(`I4: a PULL that waited hears ${code}, not ${expected}`);
    if (code === "QUEUE_TIMEOUT" && this.#around.plane.nowMs() < wait.endsMs) {
      this.#around.broken("I4: a PULL that waits is refused before its time");
    }
  }

  /** Somebody waits for a PULL to come. */
  awaited(wait: () => Promise<void>): Promise<void> {
    const { plane, limits } = this.#around;
    const before = plane.timers.size;
    const arrival = wait();
    if (plane.timers.size === before) return arrival;
    const mine = { endsMs: plane.nowMs() + limits.offerMs };
    this.#arrivals.add(mine);
    const over = (): void => {
      this.#arrivals.delete(mine);
    };
    arrival.then(over, over);
    return arrival;
  }

  step(from: string, to: string): void {
    if (to === "WAIT" && from !== "WAIT") this.#saying++;
    if (from === "WAIT" && to !== "WAIT") this.#saying--;
  }

  /** @param open as many the sender says wait */
  check(open: number): void {
    if (open !== this.size) this.#around.broken(`I4: ${open} PULLs wait, of ${this.size} that have no answer`);
    if (this.#saying !== this.size) {
      this.#around.broken(`I5: ${this.#saying} sessions say that they wait, ${this.size} PULLs have no answer`);
    }
  }
}

const placeOf = ({ requestId, reader }: FrameOf<"PULL">): string => `${requestId} ${reader.rank}`;
