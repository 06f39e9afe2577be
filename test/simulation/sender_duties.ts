import { attemptOf, type Epoch, type RequestId, type TransferId } from "../../src/ids.ts";
import type { Offer } from "../../src/transceiver/offer.ts";
import type { ReaderSide } from "../../src/transceiver/offers.ts";
import type { FrameOf, RefuseCode, SenderFrame } from "../../src/transceiver/protocol.ts";
import type { PartlyReady } from "../../src/transceiver/sender_house.ts";
import { type SenderSession, sameTransfer } from "../../src/transceiver/sender_session.ts";
import { GrantDuties } from "./grant_duties.ts";
import { SenderStates } from "./sender_states.ts";
import type { SidePlane } from "./side_plane.ts";
import { WaitingDuties } from "./waiting_duties.ts";

/** What a PULL has to hear; null: nothing, it is a repetition and counts as dropped. */
type Answer = "GRANT" | RefuseCode | "waits" | null;

/** What its engine knows of an offer. */
export interface OfferFacts {
  /** Tokens [0, n) are announced. */
  readonly announced: number;
  /** Behind those, what is announced in the model's first layers. */
  readonly ahead: PartlyReady | null;
  /** Its first tokens are known. */
  readonly finished: boolean;
}

export interface SenderAround {
  readonly plane: SidePlane;
  readonly limits: { readonly leaseMs: number; readonly transferMs: number | null; readonly offerMs: number };
  readonly tokensPerBlock: number;
  broken(what: string): void;
  factsOf(offer: Offer): OfferFacts | undefined;
}

interface Known {
  readonly offer: Offer;
  /** Reader ranks in the order of the offer's sessions; null until the first PULL. */
  ranks: readonly number[] | null;
  instance: string;
}

/**
 * What a sender owes to those who ask it: every PULL, RENEW and DONE has the consequence that it should have, and nothing else has
 * (lease-model.md sections 1 and 2). It knows what was asked and what was answered, and nothing of tables and sessions' insides.
 */
export class SenderDuties {
  readonly #around: SenderAround;
  readonly #known = new Map<RequestId, Known>();
  readonly #waits: WaitingDuties;
  readonly #grants: GrantDuties;
  readonly #states: SenderStates;
  /** Since the call at hand began. */
  #written: SenderFrame[] = [];
  #dropped = 0;
  /** While an offer is made its sessions can't be seen. */
  #postponed: (() => void)[] | null = null;
  #draining = false;

  constructor(around: SenderAround) {
    this.#around = around;
    this.#waits = new WaitingDuties(around);
    this.#grants = new GrantDuties(around);
    this.#states = new SenderStates(around, this.#grants);
  }

  get states(): SenderStates {
    return this.#states;
  }

  #broken(what: string): void {
    this.#around.broken(what);
  }

  countDropped(): void {
    this.#dropped++;
  }

  /** A step of one of its sessions, or of none. */
  step(requestId: RequestId, from: string, event: string, to: string): void {
    if (from === "NONE" && event !== "send" && to !== "NONE" && to !== "WAIT") {
      this.#broken(`I5: a PULL for no offer leads to ${to}`);
    }
    this.#waits.step(from, to);
    if (from !== "WAIT" && to !== "WAIT") this.#states.step(requestId, event, to);
  }

  /** It writes a frame, which may be lost. */
  wrote(receiver: Epoch, frame: SenderFrame): void {
    this.#written.push(frame);
    const judge = (): void => {
      if (frame.type === "RENEWED") this.#grants.renewed(receiver, frame);
      else if (frame.type === "REFUSE") this.#waits.refused(frame.transferId, frame.code, this.#draining);
      else if (frame.type === "ABORT") this.#grants.aborted(frame, this.#states.causeOf(frame.transferId));
      else if (frame.type === "READY" || frame.type === "FINISHED") this.#grants.told(frame);
    };
    if (this.#postponed !== null) this.#postponed.push(judge);
    else judge();
  }

  /** @returns what was written meanwhile, and how much was counted as dropped */
  #during<Result>(call: () => Result): {
    readonly result: Result;
    readonly written: readonly SenderFrame[];
    readonly dropped: number;
  } {
    this.#written = [];
    this.#dropped = 0;
    const result = call();
    return { result, written: this.#written, dropped: this.#dropped };
  }

  #sessionOf({ offer, ranks }: Known, rank: number): SenderSession {
    const index = Math.max(0, ranks?.indexOf(rank) ?? 0);
    return offer.sessions[index] as SenderSession;
  }

  /** Ranks of two instances that share the sessions would each get a part. */
  #isTaken({ offer, ranks, instance }: Known, side: ReaderSide): boolean {
    if (ranks === null || side.instance === instance) return false;
    const alike = side.ranks.length === ranks.length && side.ranks.every((rank) => ranks.includes(rank));
    return !alike || (ranks.length > 1 && offer.sessions.some(({ leased, state }) => leased || state === "END"));
  }

  #answerTo(receiver: Epoch, frame: FrameOf<"PULL">, side: ReaderSide): Answer {
    const { token, requestId, transferId, reader } = frame;
    if (token === undefined && !side.isMember) return "BAD_TOKEN";
    const known = this.#known.get(requestId);
    if (known === undefined) {
      if (token === undefined) return this.#waits.answerTo(receiver, frame, side, this.#draining);
      return this.#draining ? "DRAINING" : "NO_OFFER";
    }
    if (token !== undefined && token !== known.offer.token) return "BAD_TOKEN";
    if (this.#draining) return "DRAINING";
    if (!side.sameLayout) return "LAYOUT";
    const session = this.#sessionOf(known, reader.rank);
    const { state, leased } = session;
    if (state === "END") return "GONE";
    if (this.#isTaken(known, side)) return "BUSY";
    const before = session.receiver === receiver ? session.transferId : null;
    if (before === null || !sameTransfer(before, transferId)) return leased ? "BUSY" : "GRANT";
    if (attemptOf(transferId) <= attemptOf(before)) return null;
    return state === "ENDING" ? "GONE" : "GRANT";
  }

  whilePulled(receiver: Epoch, frame: FrameOf<"PULL">, side: ReaderSide, call: () => void): void {
    const expected = this.#answerTo(receiver, frame, side);
    const known = this.#known.get(frame.requestId);
    const before = known === undefined ? undefined : this.#sessionOf(known, frame.reader.rank);
    const retryMs = before?.leased === true ? this.#grants.leftMs(before) : this.#around.limits.leaseMs;
    const { written, dropped } = this.#during(call);
    this.#checkAnswer(frame, expected, written, retryMs);
    if (dropped !== (expected === null ? 1 : 0)) this.#broken(`a PULL was counted as dropped ${dropped} times`);
    if (expected === "waits") this.#waits.wait(receiver, frame, side);
    if (expected === "GRANT" && known !== undefined) this.#granted(known, frame, side, 0, written);
  }

  #checkAnswer(
    { transferId }: FrameOf<"PULL">,
    expected: Answer,
    written: readonly SenderFrame[],
    retryMs: number,
  ): void {
    const answers = written.flatMap((frame) =>
      (frame.type === "GRANT" || frame.type === "REFUSE") && frame.transferId === transferId ? [frame] : [],
    );
    const got = answers.map((frame) => (frame.type === "GRANT" ? "GRANT" : frame.code)).join(" and ");
    const wanted = expected === null || expected === "waits" ? "" : expected;
    if (got !== wanted) this.#broken(`I4: a PULL hears ${got || "nothing"} and not ${wanted || "nothing"}`);
    for (const answer of answers) {
      if (answer.type !== "REFUSE") continue;
      const ms = answer.code === "BUSY" ? retryMs : 0;
      if (answer.retryAfterMs !== ms) this.#broken(`I4: ${answer.code} says ${answer.retryAfterMs} ms, not ${ms}`);
    }
  }

  #granted(known: Known, pull: FrameOf<"PULL">, side: ReaderSide, seq: number, written: readonly SenderFrame[]): void {
    const grant = written.find((frame) => frame.type === "GRANT" && frame.transferId === pull.transferId);
    if (grant?.type !== "GRANT") return;
    known.instance = side.instance;
    known.ranks ??= [pull.reader.rank, ...side.ranks.filter((rank) => rank !== pull.reader.rank)];
    this.#grants.granted(this.#sessionOf(known, pull.reader.rank), known.offer, pull, grant, seq);
    for (const frame of written) {
      if ((frame.type === "READY" || frame.type === "FINISHED") && frame.transferId === pull.transferId)
        this.#grants.told(frame);
    }
  }

  whileOffering(requestId: RequestId, add: () => Offer): Offer {
    const postponed: (() => void)[] = [];
    this.#postponed = postponed;
    const { result: offer, written } = this.#during(() => {
      try {
        return add();
      } finally {
        this.#postponed = null;
      }
    });
    const known: Known = { offer, ranks: null, instance: "" };
    this.#known.set(requestId, known);
    this.#states.begin(offer);
    const waits = this.#waits.take(requestId);
    for (const { pull, side, seq } of waits) {
      const expected = this.#isTaken(known, side) ? "BUSY" : "GRANT";
      this.#checkAnswer(pull, expected, written, this.#around.limits.leaseMs);
      if (expected === "GRANT") this.#granted(known, pull, side, seq, written);
    }
    for (const judge of postponed) judge();
    return offer;
  }

  #match(receiver: Epoch, id: TransferId): SenderSession | undefined {
    const session = this.#grants.sessionOf(id);
    return session?.receiver === receiver && session.transferId === id && session.state !== "END" ? session : undefined;
  }

  whileRenewed(receiver: Epoch, frame: FrameOf<"RENEW">, call: () => void): void {
    const waiting: TransferId[] = [];
    const sessions: SenderSession[] = [];
    for (const id of new Set(frame.ids)) {
      const session = this.#match(receiver, id);
      if (session !== undefined) sessions.push(session);
      const wait = session === undefined ? this.#waits.find(receiver, id) : undefined;
      if (wait === undefined) continue;
      wait.seq = frame.seq;
      waiting.push(id);
    }
    this.#grants.renewing(receiver, frame.seq, waiting, sessions);
    call();
  }

  whileDone(receiver: Epoch, frame: FrameOf<"DONE">, call: () => void): void {
    const session = this.#match(receiver, frame.transferId);
    const leased = session?.leased === true;
    const wait = this.#waits.find(receiver, frame.transferId);
    if (leased) this.#states.done(session.requestId, frame);
    const { dropped } = this.#during(call);
    if (leased && session.state !== "END") this.#broken(`I4: a sender hears DONE and goes on in ${session.state}`);
    if (wait !== undefined) this.#waits.forget(wait);
    const known = leased || wait !== undefined;
    if (dropped !== (known ? 0 : 1)) this.#broken(`DONE was counted as dropped ${dropped} times`);
  }

  whileGreeted(receiver: Epoch, live: readonly TransferId[], call: () => void): void {
    const named = new Set(live);
    const given = this.#states.leased.filter(
      ({ receiver: reader, transferId }) => reader === receiver && transferId !== null && !named.has(transferId),
    );
    call();
    this.#waits.greeted(receiver, named);
    for (const session of given) {
      if (session.leased) this.#broken(`I4: a sender hears that nobody reads and goes on in ${session.state}`);
    }
  }

  whileRefusing(requestId: RequestId, call: () => void): void {
    this.#waits.refusing(requestId);
    call();
  }

  whileDraining(call: () => void): void {
    this.#draining = true;
    call();
  }

  awaited(wait: () => Promise<void>): Promise<void> {
    return this.#waits.awaited(wait);
  }

  /** After every step. @param waiting as many PULLs the sender says wait */
  check(waiting: number): void {
    this.#waits.check(waiting);
    this.#grants.check();
    this.#states.check(this.#waits.deadlines);
  }
}
