import type { ReceiverState } from "../../src/transceiver/receiver_table.ts";
import type { SenderSession } from "../../src/transceiver/sender_session.ts";
import type { Pull, Sending } from "./transfers.ts";
import type { World } from "./world.ts";

type Waiting = "asking" | "moving" | "over";

/** What a receiver in this state waits for; one wait may go through several states. */
const waitingFor: Readonly<Record<ReceiverState, Waiting>> = {
  QUEUED: "asking",
  CONNECTING: "asking",
  PULL: "asking",
  RETRY: "asking",
  READ: "moving",
  FINISH: "moving",
  ORPHAN: "moving",
  VERIFY: "moving",
  // As long as its reads run: bounded by nothing but the transport (I3).
  DRAIN: "over",
  END: "over",
};

interface Wait {
  what: string;
  sinceMs: number;
}

/** I4 in seconds: once no fault is added any more, every wait ends within the limit that is stated for it (lease-model.md section 4). */
export class Waits {
  readonly #world: World;
  readonly #waits = new Map<object, Wait>();
  /** Of a request at one process: when something came that starts a limit anew. */
  readonly #heard = new Map<string, number>();
  constructor(world: World) {
    this.#world = world;
  }

  /** A session took a step. */
  step(process: string, role: string, request: string, event: string): void {
    if (event !== "renewed" && event !== "renew")
      this.#heard.set(`${process} ${role} ${request}`, this.#world.time.now);
  }

  /** A wait that began before the calm counts from there. @returns how long it lasts */
  #waited(of: object, what: string, heardMs: number): number {
    const { now } = this.#world.time;
    let wait = this.#waits.get(of);
    if (wait?.what !== what) {
      wait = { what, sinceMs: now };
      this.#waits.set(of, wait);
    }
    return now - Math.max(wait.sinceMs, heardMs);
  }

  #check(waited: number, limitMs: number, name: () => string): void {
    const { delays, limits } = this.#world;
    // Clocks that are slow, threads that take their time, and the renewal period in which a stall is found.
    const slack = 0.06 * limitMs + 200 * delays.owner + limits.leaseMs / 2 + 10;
    if (waited <= limitMs + slack) return;
    this.#world.broken(`I4: ${name()} for ${Math.round(waited)} ms; its limit is ${Math.round(limitMs)} ms`);
  }

  receiver({ session, process, transfer }: Pull): void {
    const what = waitingFor[session.state];
    if (!this.#world.isCalm || what === "over") return;
    const { limits } = this.#world;
    const name = (): string => `transfer ${transfer.number} at ${process.name} waits in ${session.state}`;
    if (what === "asking") {
      this.#check(this.#waited(session, what, 0), limits.queueMs, name);
      return;
    }
    const heard = this.#heard.get(`${process.name} receiver ${transfer.request}`) ?? 0;
    // Without a limit for the transfer: a prefill that goes on, the others whose turn it is, then its own read.
    this.#check(this.#waited(session, what, heard), limits.transferMs ?? 3 * limits.stallMs + limits.leaseMs, name);
  }

  sender(session: SenderSession, { process, transfer, written, offer }: Sending): void {
    const { state } = session;
    if (!this.#world.isCalm || state === "END") return;
    const { limits } = this.#world;
    const name = (): string => `transfer ${transfer.number} at ${process.name} waits in ${state}`;
    const heard = state === "ENDING" ? 0 : (this.#heard.get(`${process.name} sender ${transfer.request}`) ?? 0);
    const waited = this.#waited(session, state, heard);
    if (state === "OFFER" && written === offer.tokens) {
      this.#check(waited, Math.max(limits.queueMs, limits.leaseMs), name);
    }
    if (state === "GRANT" && limits.transferMs !== null) this.#check(waited, limits.transferMs, name);
    if (state === "ENDING") this.#check(waited, limits.leaseMs, name);
  }
}
