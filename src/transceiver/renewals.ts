import type { TransferId } from "../ids.ts";
import type { LinkSurroundings, LinkUser } from "./link_user.ts";
import { type FrameOf, IDS_LIMIT } from "./protocol.ts";

interface Renewal {
  readonly seq: number;
  readonly writtenMs: number;
  readonly ids: readonly TransferId[];
}

/** The renewals of all pulls over one link: one RENEW at a time, which names every lease that a pull still needs. */
export class Renewals {
  readonly #around: Pick<LinkSurroundings, "plane" | "nextSeq" | "countDropped">;
  #last: Renewal = { seq: 0, writtenMs: 0, ids: [] };
  #outstanding: Renewal | null = null;
  #again = false;

  constructor(around: Pick<LinkSurroundings, "plane" | "nextSeq" | "countDropped">) {
    this.#around = around;
  }

  get isOutstanding(): boolean {
    return this.#outstanding !== null;
  }

  /** The clock before RENEW `seq` was written, if that is the last one; a cut does not void what the sender has heard. */
  writtenMs(seq: number): number | undefined {
    return this.#last.seq === seq ? this.#last.writtenMs : undefined;
  }

  /** What to write now; null while an answer is awaited, after which `answered` asks for another, and when nobody needs a lease. */
  next(users: Iterable<LinkUser>): { readonly seq: number; readonly ids: TransferId[] } | null {
    if (this.#outstanding !== null) {
      this.#again = true;
      return null;
    }
    const ids: TransferId[] = [];
    for (const user of users) {
      const id = user.renewing;
      if (id !== null && ids.length < IDS_LIMIT) ids.push(id);
    }
    if (ids.length === 0) return null;
    const seq = this.#around.nextSeq();
    this.#last = { seq, writtenMs: this.#around.plane.nowMs(), ids };
    this.#outstanding = this.#last;
    return { seq, ids };
  }

  /** Tells the users. @returns whether another one was asked for meanwhile */
  answered(frame: FrameOf<"RENEWED">, byTransfer: ReadonlyMap<TransferId, LinkUser>): boolean {
    const renewal = this.#outstanding;
    if (renewal === null || renewal.seq !== frame.seq) {
      this.#around.countDropped("RENEWED not asked for");
      return false;
    }
    this.#outstanding = null;
    const held = new Set(frame.ids);
    const waiting = new Set(frame.waiting);
    for (const id of renewal.ids) {
      const user = byTransfer.get(id);
      // Ended, or on to another attempt, since the RENEW was written.
      if (user?.renewing !== id) continue;
      if (held.has(id)) user.renewed(renewal.writtenMs);
      else if (!waiting.has(id)) user.leaseLost();
    }
    const again = this.#again;
    this.#again = false;
    return again;
  }

  /** The connection is gone, and with it the answer. */
  cut(): void {
    this.#outstanding = null;
    this.#again = false;
  }
}
