import { EventEmitter } from "node:events";
import type { Socket } from "node:net";
import type { SimProcess } from "./process.ts";
import type { Random } from "./random.ts";
import type { VirtualTime } from "./virtual_time.ts";

/** One end of a simulated connection: what FrameChannel uses of a socket, with bytes that take their time. */
export class SimSocket extends EventEmitter {
  readonly connection: Connection;
  readonly owner: SimProcess;
  writableLength = 0;
  #destroyed = false;
  #ended = false;

  constructor(connection: Connection, owner: SimProcess) {
    super();
    this.connection = connection;
    this.owner = owner;
  }

  get asSocket(): Socket {
    return this as unknown as Socket;
  }

  setNoDelay(): this {
    return this;
  }

  unref(): this {
    return this;
  }

  write(bytes: Uint8Array): boolean {
    if (!this.#destroyed && !this.#ended) this.connection.carry(this, { bytes: Uint8Array.from(bytes) });
    return true;
  }

  end(done?: () => void): void {
    if (this.#ended || this.#destroyed) return;
    this.#ended = true;
    this.connection.carry(this, { end: true });
    done?.();
  }

  destroy(): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    this.connection.carry(this, { end: true });
  }

  /** What arrived is read when the process gets to it. */
  arrive(parcel: Parcel): void {
    this.owner.soon(() => {
      if (this.#destroyed) return;
      if (parcel.bytes !== undefined) this.emit("data", parcel.bytes);
      else this.emit("close");
    });
  }
}

interface Parcel {
  readonly bytes?: Uint8Array;
  readonly end?: boolean;
}

/** Two ends, in order each way. A cut loses what is under way, and each side learns of it when it likes. */
export class Connection {
  readonly #time: VirtualTime;
  readonly #random: Random;
  readonly #latencyMs: number;
  readonly left: SimSocket;
  readonly right: SimSocket;
  readonly #arrival = new Map<SimSocket, number>();
  readonly #stalledUntil = new Map<SimSocket, number>();
  #cut = false;

  constructor(time: VirtualTime, random: Random, latencyMs: number, left: SimProcess, right: SimProcess) {
    this.#time = time;
    this.#random = random;
    this.#latencyMs = latencyMs;
    this.left = new SimSocket(this, left);
    this.right = new SimSocket(this, right);
  }

  get over(): boolean {
    return this.#cut;
  }

  carry(from: SimSocket, parcel: Parcel): void {
    if (this.#cut) return;
    const to = from === this.left ? this.right : this.left;
    const earliest = Math.max(this.#arrival.get(to) ?? 0, this.#stalledUntil.get(from) ?? 0);
    const at = Math.max(earliest, this.#time.now + this.#random.delay(this.#latencyMs));
    this.#arrival.set(to, at);
    this.#time.at(at, () => {
      // Later than it was sent: a stall that began meanwhile holds it up too.
      const stalled = this.#stalledUntil.get(from) ?? 0;
      if (this.#cut && parcel.end !== true) return;
      if (stalled > this.#time.now) this.#time.at(stalled, () => this.#deliver(to, parcel));
      else this.#deliver(to, parcel);
    });
  }

  #deliver(to: SimSocket, parcel: Parcel): void {
    if (this.#cut && parcel.end !== true) return;
    to.arrive(parcel);
  }

  /** Bytes from `side` on are held until then. */
  stall(side: SimSocket, untilMs: number): void {
    this.#stalledUntil.set(side, untilMs);
  }

  cut(): void {
    if (this.#cut) return;
    this.#cut = true;
    for (const end of [this.left, this.right]) {
      this.#time.after(this.#random.delay(this.#latencyMs * 50), () => end.arrive({ end: true }));
    }
  }
}
