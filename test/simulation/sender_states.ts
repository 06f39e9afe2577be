import type { KvError } from "../../src/errors.ts";
import type { RequestId, TransferId } from "../../src/ids.ts";
import type { TransferReport } from "../../src/transceiver/api.ts";
import type { Offer } from "../../src/transceiver/offer.ts";
import type { FrameOf } from "../../src/transceiver/protocol.ts";
import type { SenderSession } from "../../src/transceiver/sender_session.ts";
import type { GrantDuties } from "./grant_duties.ts";
import type { SenderAround } from "./sender_duties.ts";
import { checkTimers } from "./side_plane.ts";

interface Seen {
  state: SenderSession["state"];
  offerEndsMs: number | null;
  isPrefilled: boolean;
}

/** How an offer that has one reader has to end; one with several ends as they do together. */
interface Ending {
  readonly offer: Offer;
  cause: "CANCELLED" | "TRANSFER_TIMEOUT" | "RECEIVER_FAILED" | null;
  expected: string | null;
  done: FrameOf<"DONE"> | null;
}

/** What each state of a sender's session means for its timers, its lease and Node, and how it ends (lease-model.md sections 2 and 4). */
export class SenderStates {
  readonly #around: SenderAround;
  readonly #grants: GrantDuties;
  readonly #open = new Map<Offer, Map<SenderSession, Seen>>();
  readonly #endings = new Map<RequestId, Ending>();

  constructor(around: SenderAround, grants: GrantDuties) {
    this.#around = around;
    this.#grants = grants;
  }

  get leased(): SenderSession[] {
    return [...this.#open.keys()].flatMap(({ sessions }) => sessions.filter(({ leased }) => leased));
  }

  begin(offer: Offer): void {
    this.#open.set(offer, new Map());
    this.#endings.set(offer.requestId, { offer, cause: null, expected: null, done: null });
  }

  /** What ABORT says of this attempt; undefined where several readers make it hard to know. */
  causeOf(id: TransferId): string | undefined {
    const session = this.#grants.sessionOf(id);
    const ending = session === undefined ? undefined : this.#endings.get(session.requestId);
    if (ending === undefined || ending.offer.sessions.length > 1) return undefined;
    return ending.cause === "RECEIVER_FAILED" ? "FAILED" : (ending.cause ?? "LEASE_EXPIRED");
  }

  /** DONE is heard, with the lease held. */
  done(requestId: RequestId, frame: FrameOf<"DONE">): void {
    const ending = this.#endings.get(requestId);
    if (ending !== undefined) ending.done = frame;
  }

  step(requestId: RequestId, event: string, to: string): void {
    const ending = this.#endings.get(requestId);
    if (ending === undefined || ending.expected !== null) return;
    if (event === "cancel") ending.cause ??= "CANCELLED";
    if (event === "transferTimer") ending.cause ??= "TRANSFER_TIMEOUT";
    if (event === "slotStalled") ending.cause ??= "RECEIVER_FAILED";
    if (to !== "END") return;
    const { cause, done } = ending;
    if (event === "done") {
      const failed = done?.status === "cancelled" ? "CANCELLED" : "RECEIVER_FAILED";
      ending.expected = done?.status === "ok" ? "ok" : (cause ?? failed);
    } else if (event === "offerTimer") ending.expected = "OFFER_EXPIRED";
    else if (event === "leaseOver") ending.expected = cause ?? "LEASE_EXPIRED";
    else ending.expected = cause ?? "CANCELLED";
  }

  ended(offer: Offer, report: TransferReport | null, error: KvError | null): void {
    const ending = this.#endings.get(offer.requestId);
    if (ending === undefined || offer.sessions.length > 1) return;
    const told = error?.code ?? "ok";
    if (told !== ending.expected) this.#around.broken(`I5: a sender ends with ${told}, not ${ending.expected}`);
    if (report !== null && report.bytes !== ending.done?.bytes) {
      this.#around.broken(`I5: a sender reports ${report.bytes} bytes, its reader ${ending.done?.bytes}`);
    }
  }

  /** After every step. @param deadlines of what is no session */
  check(deadlines: readonly number[]): void {
    const { plane } = this.#around;
    const expected = [...deadlines];
    let leased = 0;
    let holds = 0;
    for (const [offer, seen] of this.#open) {
      for (const session of offer.sessions) {
        this.#look(offer, session, seen);
        const { state, lease } = session;
        if (state === "END") continue;
        holds++;
        expected.push(...this.#deadlines(session, seen.get(session)));
        const isLeased = state === "GRANT" || state === "ENDING";
        if (isLeased) leased++;
        if (isLeased !== (lease !== null && plane.leases.has(lease))) {
          this.#around.broken(`I2: a sender in ${state} has ${isLeased ? "no" : "a"} lease`);
        }
        if (state === "GRANT") this.#grants.checkTold(session);
      }
      if (!offer.isOpen) this.#open.delete(offer);
    }
    if (plane.leases.size !== leased) {
      this.#around.broken(`I2: ${plane.leases.size} leases run for ${leased} sessions that need one`);
    }
    if (plane.holds !== holds) this.#around.broken(`I4: ${plane.holds} holds on Node for ${holds} open sessions`);
    checkTimers(
      plane,
      expected,
      () => false,
      (what) => this.#around.broken(`I4: a sender's ${what}`),
    );
  }

  #deadlines(session: SenderSession, seen: Seen | undefined): number[] {
    const { transferMs } = this.#around.limits;
    if (session.state === "OFFER") return seen?.offerEndsMs == null ? [] : [seen.offerEndsMs];
    return session.state === "GRANT" && transferMs !== null ? [this.#grants.movedMs(session) + transferMs] : [];
  }

  /** What has changed since the last step. */
  #look(offer: Offer, session: SenderSession, all: Map<SenderSession, Seen>): void {
    const now = this.#around.plane.nowMs();
    const { offerMs, leaseMs } = this.#around.limits;
    const { state } = session;
    let seen = all.get(session);
    if (seen === undefined) {
      seen = { state: "OFFER", offerEndsMs: null, isPrefilled: false };
      all.set(session, seen);
    }
    const prefilled = this.#around.factsOf(offer)?.announced === offer.tokens;
    if (prefilled && !seen.isPrefilled && state !== "ENDING") {
      seen.isPrefilled = true;
      seen.offerEndsMs = now + offerMs;
    }
    if (state === seen.state) return;
    // At least one lease is left for its reader's retry.
    if (state === "OFFER" && seen.offerEndsMs !== null) seen.offerEndsMs = Math.max(seen.offerEndsMs, now + leaseMs);
    const ends =
      state === "ENDING" || (state === "END" && this.#endings.get(offer.requestId)?.expected === "LEASE_EXPIRED");
    const wasRead = seen.state === "GRANT" && offer.sessions.length === 1;
    if (wasRead && ends && !this.#grants.isAborted(session)) {
      this.#around.broken(`I4: a sender goes to ${state} and does not tell its reader`);
    }
    seen.state = state;
  }
}
