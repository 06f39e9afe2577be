import type { BlockId, Epoch } from "../ids.ts";
import type { Layout } from "../kv/layout.ts";
import type { TransceiverStats } from "./api.ts";
import type { DataPlane } from "./data_plane.ts";
import type { Dial, DialIdentity, DialTarget } from "./dial.ts";
import type { SessionObserver } from "./observer.ts";
import { PeerLink } from "./peer_link.ts";
import { PullTurns, type TurnLimits } from "./pull_turns.ts";
import type { LayerSpan } from "./read_front.ts";
import type { ReceiverHouse, ReceiverLimits, WantedOffer } from "./receiver_house.ts";
import { ReceiverSession } from "./receiver_session.ts";
import type { SlowPaths } from "./slow_path.ts";
import type { TransferCounts } from "./transfer_counts.ts";

export interface PullsOptions {
  readonly plane: DataPlane;
  readonly layout: Layout;
  /** Of the model, that this rank holds. */
  readonly layers: LayerSpan;
  readonly limits: ReceiverLimits;
  readonly leaseMs: number;
  readonly maxConcurrent: TurnLimits;
  readonly reader: ReceiverHouse["reader"];
  readonly identity: DialIdentity;
  readonly dial: Dial;
  readonly counts: TransferCounts;
  readonly observer: SessionObserver | undefined;
  /** Hears of every receive that ended well. */
  readonly slow?: SlowPaths;
}

interface KnownPeer {
  readonly link: PeerLink;
  gbPerS: number | null;
}

/** All pulls of this side and the links they use: one for each epoch of each sender. */
export class Pulls {
  readonly #options: PullsOptions;
  readonly #turns: PullTurns<ReceiverSession>;
  readonly #house: ReceiverHouse;
  readonly #sessions = new Set<ReceiverSession>();
  readonly #peers = new Map<Epoch, KnownPeer>();
  readonly #whenEmpty = new Set<() => void>();
  #connections = 0;
  #renewals = 0;

  constructor(options: PullsOptions) {
    this.#options = options;
    this.#turns = new PullTurns(options.maxConcurrent);
    const { plane, limits, reader, observer, counts, layout, layers, slow } = options;
    this.#house = {
      plane,
      limits,
      reader,
      observer,
      turns: this.#turns,
      tokensPerBlock: layout.tokensPerBlock,
      layers,
      link: (target) => this.#linkTo(target),
      countMismatches: (blocks) => counts.mismatch(blocks),
      settled: (sender, report, error) => {
        counts.receiveEnded(report, error);
        const peer = this.#peers.get(sender);
        if (report === null || peer === undefined) return;
        peer.gbPerS = report.gbPerS;
        slow?.ended(peer.link.target, report);
      },
      released: (session) => {
        if (this.#sessions.delete(session) && this.#sessions.size === 0) for (const tell of this.#whenEmpty) tell();
      },
    };
  }

  /** Of the open ones, those that wait for their turn. */
  get waiting(): number {
    return this.#turns.waiting;
  }

  get open(): number {
    return this.#sessions.size;
  }

  /** Blocks held only because a transport may still touch them. */
  get quarantined(): ReadonlySet<BlockId> {
    return new Set([...this.#sessions].flatMap(({ quarantined }) => quarantined));
  }

  get peers(): TransceiverStats["peers"] {
    return [...this.#peers.values()].map(({ link, gbPerS }) => ({
      instance: link.target.name,
      epoch: link.target.epoch,
      endpoint: link.target.unix ?? link.target.tcp,
      path: link.path,
      connected: link.up,
      gbPerS,
    }));
  }

  start(offer: WantedOffer, target: DialTarget, signal: AbortSignal | undefined): ReceiverSession {
    const session = new ReceiverSession(this.#house, target, offer, signal);
    if (session.state !== "QUEUED") return session;
    this.#sessions.add(session);
    // What waits for a prefill moves nothing: with a turn it would keep back pulls that the sender's blocks wait for.
    if (offer.token === null) session.turn();
    else this.#turns.join(session);
    return session;
  }

  cancelAll(why: string): void {
    for (const session of [...this.#sessions]) session.cancel(why);
  }

  /** Resolves when no pull is open and none of its reads can touch a block. */
  empty(): Promise<void> {
    if (this.#sessions.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const tell = (): void => {
        this.#whenEmpty.delete(tell);
        resolve();
      };
      this.#whenEmpty.add(tell);
    });
  }

  closeLinks(): void {
    for (const { link } of [...this.#peers.values()]) link.close();
  }

  #linkTo(target: DialTarget): PeerLink {
    const known = this.#peers.get(target.epoch);
    if (known !== undefined) return known.link;
    const { plane, layout, identity, dial, leaseMs, counts } = this.#options;
    const link = new PeerLink(target, {
      plane,
      identity,
      dial,
      layout,
      ownLeaseMs: leaseMs,
      countDropped: (what) => counts.drop(what),
      nextConnection: () => ++this.#connections,
      welcomed: (limits) => this.#turns.limitPeer(target.epoch, limits.pulls ?? null),
      nextSeq: () => ++this.#renewals,
      unused: (unused) => {
        this.#turns.limitPeer(target.epoch, null);
        if (this.#peers.get(target.epoch)?.link === unused) this.#peers.delete(target.epoch);
      },
    });
    this.#peers.set(target.epoch, { link, gbPerS: null });
    return link;
  }
}
