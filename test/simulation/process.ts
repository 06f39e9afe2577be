import { KvError } from "../../src/errors.ts";
import { type Epoch, newEpoch } from "../../src/ids.ts";
import type { Layout } from "../../src/kv/layout.ts";
import { BlockPool } from "../../src/kv/pool.ts";
import type { RankPart } from "../../src/kv/ranks.ts";
import { type DialFailure, type DialRequest, handshake } from "../../src/transceiver/dial.ts";
import { Offers } from "../../src/transceiver/offers.ts";
import { layoutDigest } from "../../src/transceiver/proof.ts";
import { Pulls } from "../../src/transceiver/pulls.ts";
import { Receivers } from "../../src/transceiver/receivers.ts";
import { ServedConnection } from "../../src/transceiver/served_connection.ts";
import { TransferCounts } from "../../src/transceiver/transfer_counts.ts";
import { MachineClock } from "./clock.ts";
import { SimMemory } from "./memory.ts";
import { Connection, type SimSocket } from "./network.ts";
import { SimPlane } from "./plane.ts";
import { Noise } from "./random.ts";
import type { World } from "./world.ts";

export const layout: Layout = { layers: 1, kvHeads: 2, headDim: 1, dtype: "f32", tokensPerBlock: 4, attention: "gqa" };
export const foreignLayout: Layout = { ...layout, headDim: 2 };
export const BLOCKS = 64;
export const TURNS_PER_PEER = 2;

/** Where a process stands: the same for all that are started there one after the other. */
export interface Seat {
  readonly address: string;
  /** All its ranks have this name. */
  readonly instance: string;
  readonly rank: number;
  /** Of its instance. */
  readonly ranks: number;
  readonly layout: Layout;
  /** Of its clock, from true time. */
  readonly rateError: number;
}

/** What a rank of an instance with so many reads: its heads. */
export const partOf = (rank: number, ranks: number): RankPart => {
  const heads = layout.kvHeads / ranks;
  return { layers: { from: 0, to: 1 }, heads: { from: rank * heads, to: (rank + 1) * heads }, replicated: rank === 0 };
};

/** One transceiver in one process, made of the real sessions, links and frames over a simulated plane and network. */
export class SimProcess {
  readonly name: string;
  readonly seat: Seat;
  readonly epoch: Epoch = newEpoch();
  readonly noise: Noise;
  readonly clock: MachineClock;
  readonly memory: SimMemory;
  readonly plane: SimPlane;
  readonly pool: BlockPool;
  readonly offers: Offers;
  readonly pulls: Pulls;
  readonly counts = new TransferCounts();
  readonly receivers = new Receivers();
  /** It takes no new work. */
  draining = false;
  /** No dial of this process succeeds until then. */
  refusedUntil = 0;
  /** The next one that it dials is stalled until then. */
  stalledDialUntil = 0;
  readonly #world: World;
  readonly #connections = new Set<Connection>();
  readonly #inbox: (() => void)[] = [];
  readonly #deathWatchers: (() => void)[] = [];
  #dials = 0;
  #stopped = false;
  #dead = false;
  readonly #context: ConstructorParameters<typeof ServedConnection>[0];

  constructor(world: World, name: string, seat: Seat) {
    this.#world = world;
    this.name = name;
    this.seat = seat;
    this.noise = new Noise(world.plan.noise, name);
    this.clock = new MachineClock(world.time, 1 + seat.rateError, 1e6 * this.noise.unit());
    this.memory = new SimMemory(BLOCKS, layout.tokensPerBlock, (what) => world.broken(`${what} (${name})`));
    this.plane = new SimPlane(world, this);
    this.pool = new BlockPool({
      blocks: BLOCKS,
      blockBytes: 16,
      hooks: { freed: (ids) => this.memory.freed(ids) },
    });
    const { leaseMs, transferMs, queueMs, stallMs, strict, verify } = world.limits;
    const countDropped = (what: string): void => this.counts.drop(what);
    const { plane, epoch } = this;
    const secret = world.plan.proof === "secret" ? world.secret : undefined;
    this.offers = new Offers({
      plane,
      epoch,
      limits: { leaseMs, transferMs, offerMs: queueMs },
      tokensPerBlock: layout.tokensPerBlock,
      maxOpen: 1024,
      write: (receiver, frame) => this.receivers.write(receiver, frame),
      countDropped,
      ended: (offer, report, error) => {
        this.counts.sendEnded(error);
        world.transfers.sendEnded(this, offer.requestId, report, error);
      },
      observer: (step) => world.transition(this, step),
    });
    const digest = layoutDigest(seat.layout);
    this.pulls = new Pulls({
      plane,
      layout: seat.layout,
      limits: { queueMs, transferMs, stallMs, strict, verify },
      leaseMs,
      maxConcurrent: { total: world.plan.turns, perPeer: TURNS_PER_PEER },
      reader: { rank: seat.rank, tpSize: seat.ranks, ppSize: 1 },
      identity: {
        epoch,
        instance: seat.instance,
        rank: seat.rank,
        layoutDigest: digest,
        secret,
        ca: undefined,
        socketDir: undefined,
      },
      dial: (request) => this.dial(request),
      counts: this.counts,
      observer: (step) => world.transition(this, step),
    });
    this.#context = {
      plane,
      epoch,
      instance: seat.instance,
      layout: seat.layout,
      layoutDigest: digest,
      limits: { leaseMs, stallMs },
      secret,
      offers: this.offers,
      receivers: this.receivers,
      readersOf: ({ tpSize }) => Array.from({ length: tpSize }, (_, rank) => rank),
      partRead: ({ rank, tpSize }) => partOf(rank, tpSize),
      countDropped,
    };
  }

  get dead(): boolean {
    return this.#dead;
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  get connections(): readonly Connection[] {
    return [...this.#connections].filter(({ over }) => !over);
  }

  /** Runs when this process gets to it: not while it is stopped, never once it is dead. */
  /** In the order in which it is asked for, also behind what has waited for `resume`. */
  soon(run: () => void): void {
    if (this.#dead) return;
    if (this.#stopped || this.#inbox.length > 0) this.#inbox.push(run);
    else run();
  }

  later(delayMs: number, run: () => void): void {
    this.#world.time.after(delayMs, () => this.soon(run));
  }

  /** Not before this process's clock shows `clockMs`. */
  atClock(clockMs: number, run: () => void): void {
    if (!Number.isFinite(clockMs)) return;
    // A hair later: what is due must be due on this clock too.
    const at = this.clock.trueTimeOf(clockMs) + 1e-6 + this.noise.unit();
    this.#world.time.at(at, () =>
      this.soon(() => {
        // It stood still meanwhile.
        if (this.clock.nowMs() < clockMs) this.atClock(clockMs, run);
        else run();
      }),
    );
  }

  onDeath(tell: () => void): void {
    if (this.#dead) tell();
    else this.#deathWatchers.push(tell);
  }

  /** `machine`: a paused guest, whose clock does not count on. */
  stop(machine: boolean): void {
    this.#stopped = true;
    if (machine) this.clock.freeze();
  }

  resume(): void {
    this.#stopped = false;
    this.clock.thaw();
    this.#catchUp();
  }

  /** Each waiting step runs in its own moment, as a scheduler would give them out. */
  #catchUp(): void {
    if (this.#inbox.length === 0) return;
    this.#world.time.after(0, () => {
      if (this.#stopped) return;
      this.#inbox.shift()?.();
      this.#catchUp();
    });
  }

  /** As kill -9: memory that others have mapped stays as it is, sockets close, nothing runs any more. */
  kill(): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#inbox.length = 0;
    for (const connection of this.#connections) {
      connection.carry(connection.endOf(this), { end: true });
    }
    for (const tell of this.#deathWatchers.splice(0)) tell();
  }

  dial(request: DialRequest): Promise<DialFailure | null> {
    const { time, delays, plan } = this.#world;
    return new Promise((resolve) => {
      this.later(this.noise.delay(delays.network * 2), () => {
        const target = this.#world.processAt(request.target.tcp);
        if (target === null || target.dead || time.now < this.refusedUntil) {
          const why = "connection refused";
          resolve({ error: new KvError("PEER_UNREACHABLE", { peer: request.target.name, why }), refused: false });
          return;
        }
        const local = plan.proof === "uid";
        const socket = this.connect(target, local);
        void handshake(request, socket.asSocket, local ? "unix" : "tcp").then(resolve);
      });
    });
  }

  /** @param local over a unix socket, which proves this side */
  connect(target: SimProcess, local: boolean): SimSocket {
    const { time, delays, plan } = this.#world;
    const connection = new Connection({
      time,
      noise: new Noise(plan.noise, `${this.name} ${++this.#dials}`),
      latencyMs: delays.network,
      left: this,
      right: target,
      reading: (at, read) => this.#world.reading(connection, at, read),
    });
    connection.stall(connection.left, this.stalledDialUntil);
    this.stalledDialUntil = 0;
    this.#connections.add(connection);
    target.#connections.add(connection);
    target.soon(() => {
      const served = new ServedConnection(target.#context, connection.right.asSocket, local, {
        proven: () => {},
        closed: () => target.#connections.delete(connection),
      });
      served.challenge();
    });
    connection.left.on("close", () => this.#connections.delete(connection));
    return connection.left;
  }
}
