import { attemptOf, type Epoch, type TransferId } from "../../src/ids.ts";
import { renewalPeriodMs } from "../../src/transceiver/lease_view.ts";
import type { DoneStatus, FrameOf, ReceiverFrame } from "../../src/transceiver/protocol.ts";
import type { Pulls } from "../../src/transceiver/pulls.ts";
import type { ReceiverSession } from "../../src/transceiver/receiver_session.ts";
import type { ReceiverEvent, ReceiverState } from "../../src/transceiver/receiver_table.ts";
import { ReadDuties } from "./read_duties.ts";
import { checkTimers, type SidePlane, type SideTimer } from "./side_plane.ts";

/** As PeerLink has them. */
const DIAL_PAUSES_MS = [50, 200];
const ATTEMPTS = 3;

const asking: ReadonlySet<ReceiverState> = new Set<ReceiverState>(["QUEUED", "CONNECTING", "PULL", "RETRY"]);
/** No connection can be had, or none that leads to this epoch. */
const unheard: ReadonlySet<ReceiverEvent> = new Set<ReceiverEvent>([
  "linkFailed",
  "staleEpoch",
  "senderDead",
  "senderDeadLate",
]);
/** Not on a link. */
const apart: ReadonlySet<ReceiverState> = new Set<ReceiverState>(["QUEUED", "DRAIN", "END"]);

interface Running {
  readonly target: Uint32Array;
  readonly told: boolean;
  readonly cancelled: boolean;
}

export interface ReceiverAround {
  readonly plane: SidePlane;
  readonly limits: { readonly queueMs: number; readonly transferMs: number | null; readonly strict: boolean };
  readonly leaseMs: number;
  readonly pulls: Pulls;
  readonly running: ReadonlySet<Running>;
  broken(what: string): void;
}

/** A pull, by what its session says and writes. */
interface Receiving {
  readonly session: ReceiverSession;
  readonly sender: Epoch;
  readonly firstBlock: number;
  readonly reads: ReadDuties;
  queueEndsMs: number | null;
  transferEndsMs: number | null;
  retryAtMs: number;
  /** The attempt of its last PULL. */
  asked: TransferId | null;
  refused: TransferId | null;
  /** It was cancelled before it asked for an offer that stands, or while it waited to ask again. */
  declines: boolean;
  isTold: boolean;
  /** Asked for before this attempt. */
  digests: number;
}

/** A last word that a sender has to hear as soon as there is a connection. */
interface Owed {
  readonly sender: Epoch;
  readonly untilMs: number;
  isSaid(): boolean;
}

/**
 * What a receiver owes to its senders, its caller and itself: each attempt that was asked for hears its DONE, what is read is told, a retry
 * begins as soon as it may, timers run exactly where they should (lease-model.md sections 3 and 4).
 */
export class ReceiverDuties {
  readonly #around: ReceiverAround;
  readonly #open = new Map<ReceiverSession, Receiving>();
  readonly #pulls = new Map<TransferId, { readonly frame: FrameOf<"PULL">; readonly atMs: number }>();
  readonly #dones = new Map<TransferId, DoneStatus>();
  readonly #lastRenew = new Map<Epoch, { readonly seq: number; readonly atMs: number }>();
  /** RENEWs without answer. */
  readonly #outstanding = new Map<Epoch, number>();
  readonly #digests = new Map<number, number>();
  #owed: Owed[] = [];
  #dialling = 0;
  #depth = 0;

  constructor(around: ReceiverAround) {
    this.#around = around;
    around.plane.unreached = () => {
      this.#owed = [];
    };
    around.plane.onDigest = (first) => this.#digests.set(first, (this.#digests.get(first) ?? 0) + 1);
  }

  get #now(): number {
    return this.#around.plane.nowMs();
  }

  begin(session: ReceiverSession, sender: Epoch, firstBlock: number, tell: { readonly tokens: () => number }): void {
    const { plane, limits, leaseMs, broken } = this.#around;
    const receiving: Receiving = {
      session,
      sender,
      firstBlock,
      reads: new ReadDuties(session, { leaseMs, strict: limits.strict, told: tell.tokens, broken }),
      queueEndsMs: this.#now + limits.queueMs,
      transferEndsMs: null,
      retryAtMs: 0,
      asked: null,
      refused: null,
      declines: false,
      isTold: false,
      digests: 0,
    };
    this.#open.set(session, receiving);
    plane.onRead.set(firstBlock, receiving.reads);
    const dispatch = session.dispatch.bind(session);
    session.dispatch = (event) => {
      this.#before(receiving, event);
      this.#depth++;
      dispatch(event);
      if (--this.#depth === 0 && session.state === "DRAIN") this.#checkDrain(receiving);
    };
    const granted = session.granted.bind(session);
    session.granted = (frame) => {
      const renew = this.#lastRenew.get(sender);
      const pulledMs = this.#pulls.get(frame.transferId)?.atMs ?? 0;
      if (session.state === "PULL") receiving.reads.granted(renew?.seq === frame.seq ? renew.atMs : pulledMs);
      granted(frame);
    };
    const renewed = session.renewed.bind(session);
    session.renewed = (writtenMs) => receiving.reads.whileRenewed(writtenMs, () => renewed(writtenMs));
    const dead = session.senderDead.bind(session);
    session.senderDead = (error) => receiving.reads.whileDead(this.#now, () => dead(error));
    const refused = session.refused.bind(session);
    session.refused = (frame) => {
      if (session.state === "PULL" && session.renewing === frame.transferId) {
        receiving.refused = frame.transferId;
        receiving.retryAtMs = this.#now + frame.retryAfterMs;
      }
      refused(frame);
    };
  }

  /** A session is about to take a step. */
  #before(receiving: Receiving, event: ReceiverEvent): void {
    const { transferMs } = this.#around.limits;
    const { state } = receiving.session;
    if (event === "granted") {
      receiving.digests = this.#digests.get(receiving.firstBlock) ?? 0;
      receiving.queueEndsMs = null;
      if (transferMs !== null) receiving.transferEndsMs ??= this.#now + transferMs;
    } else if (event === "ready" || event === "finished") {
      if (transferMs !== null) receiving.transferEndsMs = this.#now + transferMs;
    } else if (event === "cancel" && ["QUEUED", "CONNECTING", "RETRY"].includes(state)) {
      receiving.declines = receiving.session.offer.token !== null;
    } else if (unheard.has(event)) {
      // Nobody is told, and the lease ends by itself.
      receiving.asked = null;
    }
  }

  // --- links ----------------------------------------------------------------------------------------------------------------

  wrote(sender: Epoch, frame: ReceiverFrame): void {
    if (frame.type === "PULL") {
      this.#pulls.set(frame.transferId, { frame, atMs: this.#now });
      for (const one of this.#open.values())
        if (one.session.renewing === frame.transferId) one.asked = frame.transferId;
    }
    if (frame.type === "DONE") this.#dones.set(frame.transferId, frame.status);
    if (frame.type !== "RENEW") return;
    if (this.#outstanding.has(sender)) this.#around.broken("I8: a second RENEW before the first one is answered");
    this.#lastRenew.set(sender, { seq: frame.seq, atMs: this.#now });
    this.#outstanding.set(sender, frame.seq);
  }

  renewed(sender: Epoch, seq: number): void {
    if (this.#outstanding.get(sender) === seq) this.#outstanding.delete(sender);
  }

  cut(sender: Epoch): void {
    this.#outstanding.delete(sender);
  }

  async dialled<T>(sender: Epoch, dial: Promise<T>): Promise<T> {
    this.#dialling++;
    const failure = await dial;
    this.#dialling--;
    // What it could not be told may be given up.
    if (failure !== null) this.#owed = this.#owed.filter((owed) => owed.sender !== sender);
    return failure;
  }

  #isUp(sender: Epoch): boolean {
    return this.#around.pulls.peers.some(({ epoch, connected }) => epoch === sender && connected);
  }

  // --- after every step -----------------------------------------------------------------------------------------------------

  check(): void {
    const expected: number[] = [];
    const allowed: number[] = [];
    let holds = 0;
    for (const receiving of this.#open.values()) {
      const { session } = receiving;
      this.#look(receiving);
      if (session.state === "END") {
        this.#open.delete(session);
        continue;
      }
      holds++;
      expected.push(...this.#deadlines(receiving));
      // Due, and on its way to this thread.
      if (session.state === "RETRY") allowed.push(receiving.retryAtMs);
    }
    const { plane, broken } = this.#around;
    if (plane.holds !== holds) broken(`I4: ${plane.holds} holds on Node for ${holds} open pulls`);
    this.#checkTimers(expected, allowed);
    this.#owed = this.#owed.filter((owed) => {
      if (owed.isSaid() || this.#now >= owed.untilMs) return false;
      if (this.#isUp(owed.sender)) broken("I4: a sender is connected and does not hear that nobody reads");
      return true;
    });
  }

  #deadlines({ session, queueEndsMs, transferEndsMs, retryAtMs }: Receiving): number[] {
    if (session.outcome !== null) return [];
    const isAsking = asking.has(session.state) && queueEndsMs !== null;
    const isLater = session.state === "RETRY" && this.#now < retryAtMs;
    return [
      ...(isAsking ? [queueEndsMs] : []),
      ...(transferEndsMs === null ? [] : [transferEndsMs]),
      ...(isLater ? [retryAtMs] : []),
    ];
  }

  #checkTimers(expected: readonly number[], allowed: readonly number[]): void {
    const { plane, leaseMs, broken } = this.#around;
    const handshakeMs = Math.max(1000, leaseMs / 2);
    const others = (timer: SideTimer): boolean =>
      allowed.some((atMs) => close(atMs, timer.atMs)) ||
      this.#beats(timer) ||
      lasts(timer, ...DIAL_PAUSES_MS) ||
      (this.#dialling > 0 && lasts(timer, handshakeMs));
    checkTimers(plane, expected, others, (what) => broken(`I4: a receiver's ${what}`));
    this.#checkBeats();
  }

  #beats(timer: SideTimer): boolean {
    return lasts(timer, renewalPeriodMs(this.#around.leaseMs));
  }

  /** A link beats as long as a pull uses it. */
  #checkBeats(): void {
    const { plane, broken } = this.#around;
    const used = new Set<Epoch>();
    for (const { session, sender } of this.#open.values()) if (!apart.has(session.state)) used.add(sender);
    const beating = [...plane.timers].filter((timer) => this.#beats(timer)).length;
    if (beating !== used.size) broken(`I8: ${beating} links beat, ${used.size} are used`);
  }

  /** Its outcome is told: it uses no link, and no read goes on that can be stopped. */
  #checkDrain(receiving: Receiving): void {
    this.#checkBeats();
    this.#checkStopped(receiving);
  }

  #checkStopped({ session, firstBlock }: Receiving): void {
    for (const { target, told, cancelled } of this.#around.running) {
      if (target[0] === firstBlock && !told && !cancelled) {
        this.#around.broken(`I3: a read goes on that nobody stops in ${session.state}`);
      }
    }
  }

  #look(receiving: Receiving): void {
    const { session, sender, firstBlock } = receiving;
    const { limits, broken } = this.#around;
    const { state } = session;
    if (state === "PULL") {
      receiving.asked ??= session.renewing;
      if (session.renewing !== null && !this.#pulls.has(session.renewing))
        broken("I4: a receiver waits in PULL and has not asked");
    }
    if (asking.has(state)) receiving.queueEndsMs ??= this.#now + limits.queueMs;
    if (state === "RETRY") this.#checkRetry(receiving);
    if (state === "READ") receiving.reads.checkLate(this.#isUp(sender) && !this.#outstanding.has(sender));
    if (state === "RETRY" || state === "DRAIN") this.#checkStopped(receiving);
    if (state === "VERIFY" && (this.#digests.get(firstBlock) ?? 0) === receiving.digests) {
      broken("I4: digests are to be compared, and nobody computes them");
    }
    if (session.outcome !== null && !receiving.isTold) {
      receiving.isTold = true;
      this.#owe(receiving, session.outcome);
    }
  }

  /** It waits only for what is not there yet. */
  #checkRetry({ session, sender, firstBlock, retryAtMs, asked }: Receiving): void {
    const { plane, running, broken } = this.#around;
    if (asked !== null && attemptOf(asked) + 1 >= ATTEMPTS) {
      broken(`I4: a receiver has had its ${ATTEMPTS} attempts and waits in ${session.state}`);
      return;
    }
    const isLater = this.#now < retryAtMs || [...plane.timers].some(({ atMs }) => close(atMs, retryAtMs));
    const isQuiet = ![...running].some(({ target }) => target[0] === firstBlock);
    if (!isLater && isQuiet && this.#isUp(sender)) broken("I4: a receiver may ask again and does not");
  }

  #owe({ session, sender, asked, refused, declines }: Receiving, status: DoneStatus): void {
    const { leaseMs } = this.#around;
    if (declines) {
      const { requestId } = session.offer;
      const isSaid = (): boolean =>
        [...this.#dones.keys()].some((id) => {
          const { frame } = this.#pulls.get(id) ?? {};
          return frame?.requestId === requestId && frame.from === frame.to && frame.paths.length === 0;
        });
      this.#owed.push({ sender, untilMs: Number.POSITIVE_INFINITY, isSaid });
    } else if (asked !== null && asked !== refused) {
      this.#owed.push({ sender, untilMs: this.#now + leaseMs, isSaid: () => this.#dones.get(asked) === status });
    }
  }
}

const close = (left: number, right: number): boolean => Math.abs(left - right) < 1e-6;
const lasts = ({ setMs, atMs }: SideTimer, ...durations: readonly number[]): boolean =>
  durations.some((ms) => close(atMs - setMs, ms));
