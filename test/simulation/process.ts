import { KvError } from "../../src/errors.ts";
import { type Epoch, newEpoch } from "../../src/ids.ts";
import type { Layout } from "../../src/kv/layout.ts";
import { BlockPool } from "../../src/kv/pool.ts";
import type { RankPart } from "../../src/kv/ranks.ts";
import { type DialFailure, type DialRequest, handshake } from "../../src/transceiver/dial.ts";
import type { Offers } from "../../src/transceiver/offers.ts";
import { layoutDigest } from "../../src/transceiver/proof.ts";
import {
  decodeReceiverFrame,
  decodeSenderFrame,
  encodeFrame,
  type ReceiverFrame,
  type SenderFrame,
} from "../../src/transceiver/protocol.ts";
import { Pulls } from "../../src/transceiver/pulls.ts";
import { Receivers } from "../../src/transceiver/receivers.ts";
import { ServedConnection } from "../../src/transceiver/served_connection.ts";
import { TransferCounts } from "../../src/transceiver/transfer_counts.ts";
import { MachineClock } from "./clock.ts";
import { LAYERS, SimMemory } from "./memory.ts";
import { Connection, type SimSocket } from "./network.ts";
import { SimPlane } from "./plane.ts";
import { Noise } from "./random.ts";
import { ReceiverDuties } from "./receiver_duties.ts";
import { type SenderAround, SenderDuties } from "./sender_duties.ts";
import { SidePlane } from "./side_plane.ts";
import { WatchedOffers } from "./watched_offers.ts";
import type { World } from "./world.ts";

export const layout: Layout = {
  layers: LAYERS,
  kvHeads: 2,
  headDim: 1,
  dtype: "f32",
  tokensPerBlock: 4,
  attention: "gqa",
};
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
  return {
    layers: { from: 0, to: LAYERS },
    heads: { from: rank * heads, to: (rank + 1) * heads },
    replicated: rank === 0,
  };
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
  readonly senderDuties: SenderDuties;
  readonly receiverDuties: ReceiverDuties;
  readonly pulls: Pulls;
  readonly counts = new TransferCounts();
  readonly receivers = new Receivers();
  /** It has run since the last step that was checked. */
  touched = false;
  /** It takes no new work. */
  draining = false;
  /** It says of a PULL that waits that its lease is held. */
  confirmsWaiting = false;
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
    const senderPlane = new SidePlane(plane, world.defects.has("renewal in two steps"));
    const senderLimits = { leaseMs, transferMs, offerMs: queueMs };
    const { tokensPerBlock } = layout;
    const broken = (what: string): void => {
      if (world.duties) world.broken(`${what} (${name})`);
    };
    const factsOf: SenderAround["factsOf"] = (offer) => world.transfers.sendingOf(this, offer);
    this.senderDuties = new SenderDuties({ plane: senderPlane, limits: senderLimits, tokensPerBlock, broken, factsOf });
    this.offers = new WatchedOffers(
      {
        plane: senderPlane,
        epoch,
        limits: senderLimits,
        tokensPerBlock,
        maxOpen: 1024,
        write: (receiver, frame) => {
          this.senderDuties.wrote(receiver, frame);
          return this.receivers.write(receiver, this.#said(frame));
        },
        countDropped: (what) => {
          this.senderDuties.countDropped();
          countDropped(what);
        },
        ended: (offer, report, error) => {
          this.counts.sendEnded(error);
          this.senderDuties.states.ended(offer, report, error);
          world.transfers.sendEnded(this, offer.requestId, report, error);
        },
        observer: (step) => world.transition(this, step),
      },
      this.senderDuties,
    );
    const digest = layoutDigest(seat.layout);
    const receiverPlane = new SidePlane(plane, world.defects.has("renewal in two steps"));
    this.pulls = new Pulls({
      plane: receiverPlane,
      layout: seat.layout,
      layers: { from: 0, to: LAYERS },
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
      dial: (request) => this.receiverDuties.dialled(request.target.epoch, this.dial(this.#watched(request))),
      counts: this.counts,
      observer: (step) => world.transition(this, step),
    });
    this.receiverDuties = new ReceiverDuties({
      plane: receiverPlane,
      limits: { queueMs, transferMs, strict },
      leaseMs,
      pulls: this.pulls,
      running: plane.running,
      broken,
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

  #said(frame: SenderFrame): SenderFrame {
    if (!this.confirmsWaiting || frame.type !== "RENEWED") return frame;
    return { ...frame, ids: [...frame.ids, ...frame.waiting], waiting: [] };
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
    else {
      this.touched = true;
      run();
    }
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
      this.touched = true;
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

  /** All frames that this side writes, and the answers to its renewals. */
  #watched(request: DialRequest): DialRequest {
    const { epoch } = request.target;
    return {
      ...request,
      welcomed: (channel, welcome) => {
        const send = channel.send.bind(channel);
        channel.send = (frame) => {
          this.receiverDuties.wrote(epoch, frame as ReceiverFrame);
          return send(frame);
        };
        const listener = request.welcomed(channel, welcome);
        return {
          frame: (bytes) => {
            const decoded = decodeSenderFrame(bytes);
            if (!decoded.ok) return listener.frame(bytes);
            const { frame } = decoded;
            const isOther = "transferId" in frame && "re" in frame && (frame.se !== epoch || frame.re !== this.epoch);
            if (frame.type === "RENEWED" && !isOther) this.receiverDuties.renewed(epoch, frame.seq);
            const forgiven = isOther && this.#world.defects.has("epochs unread at the receiver");
            this.#world.readingOf(isOther, () =>
              listener.frame(forgiven ? encodeFrame({ ...frame, se: epoch, re: this.epoch }) : bytes),
            );
          },
          closed: (why) => {
            this.receiverDuties.cut(epoch);
            listener.closed(why);
          },
        };
      },
    };
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
      if (this.#world.defects.has("epochs unread at the sender")) forgiveEpochs(served, target);
      served.challenge();
    });
    connection.left.on("close", () => this.#connections.delete(connection));
    return connection.left;
  }
}

/** A deliberate defect: what a frame says of epochs is believed, or not looked at. */
function forgiveEpochs(served: ServedConnection, { epoch: se, offers }: SimProcess): void {
  const read = served.frame.bind(served);
  let receiver: Epoch | null = null;
  served.frame = (bytes) => {
    const decoded = decodeReceiverFrame(bytes);
    if (!decoded.ok || !("se" in decoded.frame)) return read(bytes);
    const { frame } = decoded;
    if (frame.type === "HELLO") receiver = frame.re;
    if (frame.type === "RENEW" && frame.re !== receiver) offers.renew(frame.re, frame);
    else if (frame.type === "DONE" && frame.re !== receiver) offers.done(frame.re, frame);
    else read(encodeFrame({ ...frame, se }));
  };
}
