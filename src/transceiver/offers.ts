import { KvError } from "../errors.ts";
import type { CapabilityToken, Epoch, RequestId, TransferId } from "../ids.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { CancelOutcome, TransferReport } from "./api.ts";
import type { PlaneLease } from "./data_plane.ts";
import { Offer, type OfferedKv, type OfferHouse, type ReaderAsked } from "./offer.ts";
import { equalTokens } from "./proof.ts";
import type { FrameOf } from "./protocol.ts";
import { refusalFrame, type SenderHouse } from "./sender_house.ts";
import type { SenderSession } from "./sender_session.ts";
import { type Refusal, type SenderEffect, type SenderEvent, type SenderState, senderTable } from "./sender_table.ts";
import { cellOf } from "./transition.ts";
import { WaitingPulls } from "./waiting_pulls.ts";

/** Ended offers that are remembered, so that a late PULL hears GONE and a late cancel `already_complete`. */
const REMEMBERED = 1024;

export interface OffersOptions extends SenderHouse {
  readonly maxOpen: number;
  readonly ended: (offer: Offer, report: TransferReport | null, error: KvError | null) => void;
}

/** What a connection knows of the receiver at its other end. */
export interface ReaderSide {
  readonly sameLayout: boolean;
  /** The ranks of its instance that read this rank's KV. */
  readonly ranks: readonly number[];
  /** What of this rank's KV the one that pulls reads; default all. */
  readonly part?: RankPart | undefined;
  /** Proven by the cluster secret or its uid: may pull without a token. */
  readonly isMember: boolean;
  /** The name that all ranks of its instance share. */
  readonly instance: string;
}

/** All offers of this side: finds the session that a frame of a proven receiver is about. */
export class Offers {
  readonly #options: OffersOptions;
  readonly #house: OfferHouse;
  readonly #live = new Map<RequestId, Offer>();
  readonly #remembered = new Map<RequestId, Offer>();
  readonly #byTransfer = new Map<TransferId, SenderSession>();
  readonly #whenEmpty = new Set<() => void>();
  /** PULLs that came before their offer. */
  readonly waiting: WaitingPulls;
  #draining = false;

  constructor(options: OffersOptions) {
    this.#options = options;
    this.#house = {
      ...options,
      bound: (session, before, now) => {
        if (before !== null) this.#byTransfer.delete(before);
        this.#byTransfer.set(now, session);
      },
      sessionEnded: ({ transferId }) => {
        if (transferId !== null) this.#byTransfer.delete(transferId);
      },
      offerEnded: (over, report, error) => {
        this.#forget(over);
        options.ended(over, report, error);
        if (this.#live.size === 0) for (const tell of this.#whenEmpty) tell();
      },
    };
    this.waiting = new WaitingPulls({ ...options, queueMs: options.limits.offerMs });
  }

  get live(): Iterable<Offer> {
    return this.#live.values();
  }

  get open(): number {
    return this.#live.size;
  }

  /** @throws KvError INVALID_ARGUMENT when an offer of this request is open, OFFERS_FULL, CLOSED after `cancelAll` */
  add(offered: OfferedKv): Offer {
    if (this.#draining) throw new KvError("CLOSED", { what: "this transceiver" });
    if (this.#live.has(offered.requestId)) {
      const why = "an offer with this id is open already";
      throw new KvError("INVALID_ARGUMENT", { what: `request ${offered.requestId}`, why });
    }
    const { maxOpen } = this.#options;
    if (this.#live.size >= maxOpen) throw new KvError("OFFERS_FULL", { open: this.#live.size, limit: maxOpen });
    this.#remembered.delete(offered.requestId);
    const offer = new Offer(this.#house, offered);
    this.#live.set(offered.requestId, offer);
    for (const asked of this.waiting.take(offered.requestId)) offer.pull(asked);
    return offer;
  }

  /** The token of a live offer, for a proof. */
  tokenOf(request: RequestId): CapabilityToken | undefined {
    return this.#live.get(request)?.token;
  }

  /** The holder of an offer's token ends it. */
  release(request: RequestId, token: CapabilityToken): CancelOutcome {
    const offer = this.#live.get(request) ?? this.#remembered.get(request);
    if (offer === undefined || !equalTokens(offer.token, token)) return "not_found";
    return offer.cancel("released by the holder of its state");
  }

  /** Ends those that nobody reads; a granted one ends with its receiver's DONE or its lease. PULLs are refused from now on. */
  cancelAll(why: string): void {
    this.#draining = true;
    this.waiting.drain(new KvError("CLOSED", { what: "this transceiver" }));
    for (const offer of [...this.#live.values()]) offer.cancel(why);
  }

  /** Resolves when no offer is open. */
  empty(): Promise<void> {
    if (this.#live.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const tell = (): void => {
        this.#whenEmpty.delete(tell);
        resolve();
      };
      this.#whenEmpty.add(tell);
    });
  }

  /** HELLO of a receiver epoch: what it does not name it reads no more. */
  hello(receiver: Epoch, live: readonly TransferId[]): void {
    const named = new Set(live);
    for (const session of [...this.#live.values()].flatMap(({ sessions }) => sessions)) {
      const { transferId } = session;
      // It is over, and others of its offer go on.
      if (session.state === "END") continue;
      if (session.receiver === receiver && transferId !== null && !named.has(transferId)) session.helloWithout();
    }
    this.waiting.hello(receiver, named);
  }

  pull(
    receiver: Epoch,
    frame: FrameOf<"PULL">,
    { sameLayout, ranks: readers, isMember, part, instance }: ReaderSide,
  ): void {
    const { transferId, token = null, from, to, verify = "off", readyIn, paths } = frame;
    const { rank } = frame.reader;
    const draining = this.#draining;
    const asked = {
      receiver,
      transferId,
      token,
      sameLayout,
      draining,
      heard: 0,
      rank,
      readers,
      instance,
      from,
      to,
      verify,
      byLayer: readyIn === "layers",
      paths,
      part,
    };
    if (token === null && !isMember) {
      this.#refuse("refuseBadToken", asked);
      return;
    }
    const offer = this.#live.get(frame.requestId) ?? this.#remembered.get(frame.requestId);
    if (offer !== undefined) {
      offer.pull(asked);
      return;
    }
    if (token === null) {
      this.waiting.pull(frame.requestId, asked);
      return;
    }
    const event: SenderEvent = this.#draining ? "pullDraining" : "pull";
    const { next, effects } = cellOf<SenderState, SenderEvent, SenderEffect>("sender", senderTable, "NONE", event);
    this.#options.observer?.({ role: "sender", requestId: frame.requestId, from: "NONE", event, to: next });
    for (const effect of effects) this.#refuse(effect as Refusal, asked);
  }

  /** Extension and answer are one step of the data plane: only ids still held after it are named. */
  renew(receiver: Epoch, frame: FrameOf<"RENEW">): void {
    const extending: PlaneLease[] = [];
    const sessions: SenderSession[] = [];
    const waiting: TransferId[] = [];
    for (const id of new Set(frame.ids)) {
      const session = this.#matching(receiver, id);
      if (session === undefined) {
        if (this.waiting.renew(receiver, id, frame.seq)) waiting.push(id);
        continue;
      }
      sessions.push(session);
      session.renew(extending);
    }
    const leases = sessions.map((session) => session.lease);
    const answer = (held: readonly TransferId[]): void => {
      const head = { se: this.#options.epoch, re: receiver };
      this.#options.write(receiver, { type: "RENEWED", ...head, seq: frame.seq, ids: [...held], waiting });
    };
    if (extending.length === 0) {
      answer([]);
      return;
    }
    this.#options.plane.renew(extending, (extended) => {
      const held: TransferId[] = [];
      for (const [index, session] of sessions.entries()) {
        const lease = leases[index] ?? null;
        // A session that has another lease by now was granted anew, which its receiver learns by GRANT.
        if (lease !== null && extended.has(lease) && session.lease === lease) session.renewed(held);
      }
      answer(held);
    });
  }

  done(receiver: Epoch, frame: FrameOf<"DONE">): void {
    const session = this.#matching(receiver, frame.transferId);
    if (session !== undefined) session.receiverDone(frame);
    else if (!this.waiting.done(receiver, frame.transferId)) this.#options.countDropped("DONE of no session");
  }

  #refuse(refusal: Refusal, asked: Pick<ReaderAsked, "receiver" | "transferId">): void {
    this.#options.write(asked.receiver, refusalFrame(refusal, this.#options.epoch, asked, 0));
  }

  #matching(receiver: Epoch, id: TransferId): SenderSession | undefined {
    const session = this.#byTransfer.get(id);
    return session?.receiver === receiver ? session : undefined;
  }

  #forget(offer: Offer): void {
    this.#live.delete(offer.requestId);
    this.#remembered.set(offer.requestId, offer);
    if (this.#remembered.size <= REMEMBERED) return;
    for (const oldest of this.#remembered.keys()) {
      this.#remembered.delete(oldest);
      break;
    }
  }
}
