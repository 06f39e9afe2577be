import { KvError } from "../../src/errors.ts";
import { type Epoch, newEpoch } from "../../src/ids.ts";
import type { Layout } from "../../src/kv/layout.ts";
import { BlockPool } from "../../src/kv/pool.ts";
import { type DialFailure, type DialRequest, handshake } from "../../src/transceiver/dial.ts";
import { Offers } from "../../src/transceiver/offers.ts";
import { layoutDigest } from "../../src/transceiver/proof.ts";
import { Pulls } from "../../src/transceiver/pulls.ts";
import { Receivers } from "../../src/transceiver/receivers.ts";
import { ServedConnection } from "../../src/transceiver/served_connection.ts";
import { TransferCounts } from "../../src/transceiver/transfer_counts.ts";
import type { VerifyMode } from "../../src/transceiver/verification.ts";
import { SimMemory } from "./memory.ts";
import { Connection } from "./network.ts";
import { SimPlane } from "./plane.ts";
import type { World } from "./world.ts";

export const layout: Layout = { layers: 1, kvHeads: 1, headDim: 1, dtype: "f32", tokensPerBlock: 4, attention: "gqa" };
export const BLOCKS = 48;

export interface Limits {
  readonly leaseMs: number;
  readonly transferMs: number | null;
  readonly queueMs: number;
  readonly stallMs: number;
  readonly strict: boolean;
  readonly verify: VerifyMode;
}

/** One transceiver in one process, made of the real sessions, links and frames over a simulated plane and network. */
export class SimProcess {
  readonly name: string;
  readonly address: string;
  readonly epoch: Epoch = newEpoch();
  readonly memory: SimMemory;
  readonly plane: SimPlane;
  readonly pool: BlockPool;
  readonly offers: Offers;
  readonly pulls: Pulls;
  readonly counts = new TransferCounts();
  readonly #world: World;
  readonly #receivers = new Receivers();
  readonly #connections = new Set<Connection>();
  readonly #inbox: (() => void)[] = [];
  readonly #deathWatchers: (() => void)[] = [];
  /** True time → this clock: offset + rate * time. Rates differ by at most 2.5 % from true time. */
  readonly #rate: number;
  readonly #offset: number;
  #stopped = false;
  #dead = false;
  readonly #context: ConstructorParameters<typeof ServedConnection>[0];

  constructor(world: World, name: string, address: string, limits: Limits) {
    this.#world = world;
    this.name = name;
    this.address = address;
    this.#rate = 1 + world.random.between(-world.clockError, world.clockError);
    this.#offset = world.random.between(0, 1e6);
    this.memory = new SimMemory(BLOCKS, layout.tokensPerBlock, (what) => world.broken(`${name}: ${what}`));
    this.plane = new SimPlane(world, this);
    this.pool = new BlockPool({
      blocks: BLOCKS,
      blockBytes: 16,
      hooks: { freed: (ids) => this.memory.freed(ids) },
    });
    const { leaseMs, transferMs, queueMs, stallMs, strict, verify } = limits;
    const countDropped = (what: string): void => this.counts.drop(what);
    const { plane, epoch } = this;
    this.offers = new Offers({
      plane,
      epoch,
      limits: { leaseMs, transferMs, offerMs: queueMs },
      tokensPerBlock: layout.tokensPerBlock,
      maxOpen: 1024,
      write: (receiver, frame) => this.#receivers.write(receiver, frame),
      countDropped,
      ended: (offer, report, error) => {
        this.counts.sendEnded(error);
        world.sendEnded(offer.requestId, report, error);
      },
      observer: (step) => world.transition(name, step),
    });
    const digest = layoutDigest(layout);
    this.pulls = new Pulls({
      plane,
      layout,
      limits: { queueMs, transferMs, stallMs, strict, verify },
      leaseMs,
      maxConcurrent: { total: 3, perPeer: 2 },
      reader: { rank: 0, tpSize: 1, ppSize: 1 },
      identity: {
        epoch,
        instance: name,
        rank: 0,
        layoutDigest: digest,
        secret: undefined,
        ca: undefined,
        socketDir: undefined,
      },
      dial: (request) => this.#dial(request),
      counts: this.counts,
      observer: (step) => world.transition(name, step),
    });
    this.#context = {
      plane,
      epoch,
      instance: name,
      layout,
      layoutDigest: digest,
      limits: { leaseMs, stallMs },
      secret: undefined,
      offers: this.offers,
      receivers: this.#receivers,
      readersOf: ({ rank }) => [rank],
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

  clock(): number {
    return this.#offset + this.#rate * this.#world.time.now;
  }

  /** Runs when this process gets to it: not while it is stopped, never once it is dead. */
  soon(run: () => void): void {
    if (this.#dead) return;
    if (this.#stopped) this.#inbox.push(run);
    else run();
  }

  later(delayMs: number, run: () => void): void {
    this.#world.time.after(delayMs, () => this.soon(run));
  }

  /** Not before this process's clock shows `clockMs`. */
  atClock(clockMs: number, run: () => void): void {
    if (!Number.isFinite(clockMs)) return;
    const at = (clockMs - this.#offset) / this.#rate;
    // A hair later: what is due must be due on this clock too.
    this.#world.time.at(at + 1e-6 + this.#world.random.delay(this.#world.delays.timer), () => this.soon(run));
  }

  onDeath(tell: () => void): void {
    if (this.#dead) tell();
    else this.#deathWatchers.push(tell);
  }

  stop(): void {
    this.#stopped = true;
  }

  resume(): void {
    this.#stopped = false;
    const waiting = this.#inbox.splice(0);
    // Each waiting step runs in its own moment, in order, as a scheduler would give them out.
    for (const run of waiting) this.#world.time.after(0, () => this.soon(run));
  }

  /** As kill -9: memory that others have mapped stays as it is, sockets close, nothing runs any more. */
  kill(): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#inbox.length = 0;
    for (const connection of this.#connections) {
      const mine = connection.left.owner === this ? connection.left : connection.right;
      connection.carry(mine, { end: true });
    }
    for (const tell of this.#deathWatchers.splice(0)) tell();
  }

  #dial(request: DialRequest): Promise<DialFailure | null> {
    const { time, random, delays } = this.#world;
    return new Promise((resolve) => {
      this.later(random.delay(delays.network * 2), () => {
        const target = this.#world.processAt(request.target.tcp);
        if (target === null || target.dead || this.#world.faults.chance("refusedDial")) {
          const why = "connection refused";
          resolve({ error: new KvError("PEER_UNREACHABLE", { peer: request.target.name, why }), refused: false });
          return;
        }
        const connection = new Connection(time, random, delays.network, this, target);
        this.#connections.add(connection);
        target.#connections.add(connection);
        // Over the unix socket or over TCP with the offer's token; who has none is of the cluster only where the socket proves it.
        const local = request.offer?.token === null || random.chance(0.5);
        target.soon(() => {
          const served = new ServedConnection(target.#context, connection.right.asSocket, local, {
            proven: () => {},
            closed: () => target.#connections.delete(connection),
          });
          served.challenge();
        });
        connection.left.on("close", () => this.#connections.delete(connection));
        void handshake(request, connection.left.asSocket, local ? "unix" : "tcp").then(resolve);
      });
    });
  }
}
