import { EventEmitter } from "node:events";
import type { Socket } from "node:net";
import type { SimProcess } from "./process.ts";
import type { Noise } from "./random.ts";
import type { VirtualTime } from "./virtual_time.ts";

/** One end of a simulated connection: what FrameChannel uses of a socket, with bytes that take their time. */
export class SimSocket extends EventEmitter {
  readonly connection: Connection;
  readonly owner: SimProcess;
  writableLength = 0;
  destroyed = false;
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

  pause(): this {
    return this;
  }

  resume(): this {
    return this;
  }

  write(bytes: Uint8Array): boolean {
    if (!this.destroyed && !this.#ended) this.connection.carry(this, { bytes: Uint8Array.from(bytes) });
    return true;
  }

  end(done?: () => void): void {
    if (this.#ended || this.destroyed) return;
    this.#ended = true;
    this.connection.carry(this, { end: true });
    done?.();
  }

  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.connection.carry(this, { end: true });
  }

  /** What arrived is read when the process gets to it. */
  arrive(parcel: Parcel): void {
    this.owner.soon(() => {
      if (this.destroyed) return;
      if (parcel.bytes !== undefined) this.connection.reading(this, () => this.emit("data", parcel.bytes));
      else this.emit("close");
    });
  }
}

interface Parcel {
  readonly bytes?: Uint8Array;
  readonly end?: boolean;
}

interface Way {
  /** The last one that has arrived. */
  arrived: Uint8Array | null;
  /** Under way, in order. */
  readonly parcels: { readonly at: number; readonly parcel: Parcel }[];
  arrivalMs: number;
  stalledUntilMs: number;
  /** Parcels that will arrive twice. */
  doubled: number;
}

const newWay = (): Way => ({ arrived: null, parcels: [], arrivalMs: 0, stalledUntilMs: 0, doubled: 0 });

export interface ConnectionOptions {
  readonly time: VirtualTime;
  readonly noise: Noise;
  readonly latencyMs: number;
  readonly left: SimProcess;
  readonly right: SimProcess;
  /** Around the reading of each parcel from the other end. */
  reading?(at: SimSocket, read: () => void): void;
}

/** Two ends, in order each way. */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly left: SimSocket;
  readonly right: SimSocket;
  readonly #ways: ReadonlyMap<SimSocket, Way>;
  #cut = false;
  #silent = false;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.left = new SimSocket(this, options.left);
    this.right = new SimSocket(this, options.right);
    this.#ways = new Map([
      [this.left, newWay()],
      [this.right, newWay()],
    ]);
  }

  get over(): boolean {
    return this.#cut;
  }

  endOf(process: SimProcess): SimSocket {
    return this.left.owner === process ? this.left : this.right;
  }

  otherEnd(end: SimSocket): SimSocket {
    return end === this.left ? this.right : this.left;
  }

  /** From each side, the first parcel that has not arrived, or the last one that has. */
  underWay(): [SimSocket, Uint8Array][] {
    return [this.left, this.right].flatMap((side): [SimSocket, Uint8Array][] => {
      const { parcels, arrived } = this.#wayFrom(side);
      const bytes = parcels.find(({ parcel }) => parcel.bytes !== undefined)?.parcel.bytes ?? arrived;
      return bytes === null ? [] : [[side, bytes]];
    });
  }

  reading(at: SimSocket, read: () => void): void {
    if (this.#options.reading === undefined) read();
    else this.#options.reading(at, read);
  }

  #wayFrom(side: SimSocket): Way {
    return this.#ways.get(side) as Way;
  }

  carry(from: SimSocket, parcel: Parcel): void {
    if (this.#cut || this.#silent) return;
    const { time, noise, latencyMs } = this.#options;
    const to = this.otherEnd(from);
    const way = this.#wayFrom(from);
    const at = Math.max(way.arrivalMs, way.stalledUntilMs, time.now + noise.delay(latencyMs));
    way.arrivalMs = at;
    const times = way.doubled > 0 && parcel.bytes !== undefined ? 2 : 1;
    way.doubled -= times - 1;
    for (let turn = 0; turn < times; turn++) way.parcels.push({ at, parcel });
    time.at(at, () => this.#deliver(way, to));
  }

  /** All that is due, unless a stall holds it up that began after it was sent. */
  #deliver(way: Way, to: SimSocket): void {
    const { time } = this.#options;
    const first = way.parcels[0];
    if (first === undefined || first.at > time.now) return;
    if (way.stalledUntilMs > time.now) {
      time.at(way.stalledUntilMs, () => this.#deliver(way, to));
      return;
    }
    way.parcels.shift();
    way.arrived = first.parcel.bytes ?? way.arrived;
    if (!this.#silent && (!this.#cut || first.parcel.end === true)) to.arrive(first.parcel);
    this.#deliver(way, to);
  }

  /** Bytes from `side` on are held until then. */
  stall(side: SimSocket, untilMs: number): void {
    this.#wayFrom(side).stalledUntilMs = untilMs;
  }

  /** What `side` writes next arrives twice: no TCP does this, but a broken peer may. */
  double(side: SimSocket, parcels: number): void {
    this.#wayFrom(side).doubled = parcels;
  }

  /** Half open: nothing arrives any more, and nobody is told. */
  silence(): void {
    this.#silent = true;
  }

  /** What is under way is lost, and each side learns of it when it likes. */
  cut(): void {
    if (this.#cut) return;
    this.#cut = true;
    const { time, noise, latencyMs } = this.#options;
    for (const end of [this.left, this.right]) {
      time.after(noise.delay(latencyMs * 50), () => end.arrive({ end: true }));
    }
  }
}
