import { KvError, withoutFrames } from "../errors.ts";
import { type CapabilityToken, newToken, type RequestId, type TransferId } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { CancelOutcome, FirstTokens, TransferReport } from "./api.ts";
import { joinReports } from "./joined_reports.ts";
import type { LayerSpan } from "./read_front.ts";
import type { PartlyReady, PullAsked, SenderHouse, SessionOwner } from "./sender_house.ts";
import { SenderSession } from "./sender_session.ts";
import { Settled } from "./settled.ts";

export interface OfferedKv {
  readonly requestId: RequestId;
  readonly tokens: number;
  readonly blocks: BlockHold;
  readonly ready: number;
  /** Of the model, that this rank holds. */
  readonly layers: LayerSpan;
}

/** A PULL, and the ranks of its side. */
export interface ReaderAsked extends PullAsked {
  /** Who pulls. */
  readonly rank: number;
  /** All ranks that read this one's KV, `rank` among them. */
  readonly readers: readonly number[];
  /** Whose ranks these are. */
  readonly instance: string;
}

/** What all offers of one transceiver share. */
export interface OfferHouse extends SenderHouse {
  bound: SessionOwner["bound"];
  /** A session is over; others of the offer may go on. */
  sessionEnded(session: SenderSession): void;
  /** Once, when all sessions are over. */
  offerEnded(offer: Offer, report: TransferReport | null, error: KvError | null): void;
}

/**
 * The KV of one request that this rank holds, with a session for each rank that reads it: each has a lease of its own and pins the
 * blocks. How many there are is known from the first PULL; one that never pulls is bounded by the offer timer.
 */
export class Offer implements SessionOwner {
  readonly requestId: RequestId;
  readonly tokens: number;
  readonly token: CapabilityToken = newToken();
  readonly #house: OfferHouse;
  readonly #layers: LayerSpan;
  readonly #settled = new Settled<TransferReport>();
  readonly #main: SenderSession;
  readonly #sessions: SenderSession[] = [];
  /** By reader rank; null until the first PULL. */
  #byRank: Map<number, SenderSession> | null = null;
  /** Whose ranks they are. */
  #instance = "";
  #ready: number;
  #ahead: PartlyReady | null = null;
  #first: FirstTokens | null = null;
  #open = 0;
  #asking: ReaderAsked | null = null;
  readonly #reports: TransferReport[] = [];
  #error: KvError | null = null;

  constructor(house: OfferHouse, offered: OfferedKv) {
    this.#house = house;
    this.requestId = offered.requestId;
    this.tokens = offered.tokens;
    this.#layers = offered.layers;
    this.#ready = offered.ready;
    this.#main = this.#start(offered.blocks);
  }

  get sessions(): readonly SenderSession[] {
    return this.#sessions;
  }

  get done(): Promise<TransferReport> {
    return this.#settled.promise;
  }

  get isOpen(): boolean {
    return this.#open > 0;
  }

  get leased(): boolean {
    return this.#sessions.some(({ leased }) => leased);
  }

  /** Blocks that a session still pins; all pin the same. */
  get pinned(): BlockHold["ids"] {
    return this.#sessions.find(({ blocks }) => !blocks.released)?.blocks.ids ?? [];
  }

  /**
   * Tokens [0, n) are visible. Monotone; less than before is ignored.
   * @param layers only in the model's first ones; default: in all
   */
  ready(tokens: number, layers: number = this.#layers.to): void {
    if (!Number.isInteger(tokens) || tokens < 0 || tokens > this.tokens) {
      const why = `the offer has ${this.tokens} tokens`;
      throw new KvError("INVALID_ARGUMENT", { what: `ready(${tokens}) of request ${this.requestId}`, why });
    }
    // What other stages have is nothing to this one's readers.
    if (tokens <= this.#ready || layers <= this.#layers.from) return;
    if (layers < this.#layers.to) {
      const ahead = { tokens, layers };
      this.#ahead = ahead;
      for (const session of [...this.#sessions]) session.readyAhead(ahead);
      return;
    }
    this.#ready = tokens;
    this.#ahead = null;
    for (const session of [...this.#sessions]) session.ready(tokens);
  }

  /** Prefill is over: all tokens are visible, and these are the first of the answer. Once; later calls say nothing new. */
  finish(first: FirstTokens): void {
    if (this.#first !== null) return;
    this.#first = first;
    this.#ready = this.tokens;
    this.#ahead = null;
    for (const session of [...this.#sessions]) session.finish(first);
  }

  cancel(why: string): CancelOutcome {
    if (!this.isOpen) return "already_complete";
    for (const session of [...this.#sessions]) session.cancel(why);
    return this.isOpen ? "in_flight" : "cancelled";
  }

  pull(asked: ReaderAsked): void {
    this.#asking = asked;
    (this.#byRank?.get(asked.rank) ?? this.#main).pull({ ...asked, taken: this.#isTaken(asked) });
    this.#asking = null;
  }

  /** Ranks of two instances that share the sessions would each get a part, and neither instance all of it. */
  #isTaken({ instance, readers }: ReaderAsked): boolean {
    const byRank = this.#byRank;
    if (byRank === null || instance === this.#instance) return false;
    const alike = readers.length === byRank.size && readers.every((rank) => byRank.has(rank));
    return !alike || (byRank.size > 1 && this.#sessions.some(({ leased, state }) => leased || state === "END"));
  }

  #start(blocks: BlockHold): SenderSession {
    this.#open++;
    const session = new SenderSession(this.#house, this, {
      blocks,
      ready: this.#ready,
      ahead: this.#ahead,
      first: this.#first,
    });
    this.#sessions.push(session);
    return session;
  }

  /** @internal Of its sessions. The first PULL that is right says who reads; its own session stands already. */
  bound(session: SenderSession, before: TransferId | null, now: TransferId): void {
    this.#house.bound(session, before, now);
    const asking = this.#asking;
    if (asking === null) return;
    this.#instance = asking.instance;
    if (this.#byRank !== null) return;
    this.#byRank = new Map([[asking.rank, this.#main]]);
    for (const rank of asking.readers) {
      if (!this.#byRank.has(rank)) this.#byRank.set(rank, this.#start(this.#main.blocks));
    }
  }

  /** @internal Of its sessions. */
  ended(over: SenderSession, report: TransferReport | null, error: KvError | null): void {
    this.#open--;
    if (report !== null) this.#reports.push(report);
    // Ended offers are remembered, and so is how they ended.
    this.#error ??= error && withoutFrames(error);
    this.#house.sessionEnded(over);
    if (this.#open > 0) {
      // Its side can't use a part of the KV. After LEASE_EXPIRED it may have it all: only its last word was lost.
      if (error === null || error.code === "LEASE_EXPIRED") return;
      for (const other of [...this.#sessions]) other.cancel(`another of its readers ended: ${error.message}`);
      return;
    }
    const [first, ...rest] = this.#reports;
    const joined = this.#error === null && first !== undefined ? joinReports([first, ...rest]) : null;
    if (joined !== null) this.#settled.resolve(joined);
    else if (this.#error !== null) this.#settled.reject(this.#error);
    this.#house.offerEnded(this, joined, this.#error);
  }
}
