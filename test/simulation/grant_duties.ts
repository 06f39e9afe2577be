import type { Epoch, TransferId } from "../../src/ids.ts";
import type { PlaneLease } from "../../src/transceiver/data_plane.ts";
import type { Offer } from "../../src/transceiver/offer.ts";
import type { FrameOf } from "../../src/transceiver/protocol.ts";
import type { PartlyReady } from "../../src/transceiver/sender_house.ts";
import type { SenderSession } from "../../src/transceiver/sender_session.ts";
import { rangesToVerify } from "../../src/transceiver/verification.ts";
import type { SenderAround } from "./sender_duties.ts";

/** An attempt that was granted, by the frames that its reader was sent. */
interface Granted {
  readonly session: SenderSession;
  readonly offer: Offer;
  readonly ranges: Uint32Array;
  leaseEndsMs: number;
  /** What restarts the transfer's limit. */
  movedMs: number;
  told: number;
  readonly byLayer: boolean;
  ahead: PartlyReady | null;
  finished: boolean;
  digests: number;
  aborted: boolean;
}

interface Renewal {
  readonly receiver: Epoch;
  readonly seq: number;
  readonly waiting: readonly TransferId[];
  readonly asked: readonly { readonly id: TransferId; readonly session: SenderSession; readonly lease: PlaneLease }[];
}

/** What a reader is told between GRANT and the end: what is ready, digests, first tokens, which leases are held, ABORT. */
export class GrantDuties {
  readonly #around: SenderAround;
  readonly #granted = new Map<TransferId, Granted>();
  readonly #renewals: Renewal[] = [];

  constructor(around: SenderAround) {
    this.#around = around;
  }

  get #now(): number {
    return this.#around.plane.nowMs();
  }

  sessionOf(id: TransferId): SenderSession | undefined {
    return this.#granted.get(id)?.session;
  }

  /** Of a leased session, as long as another one has to wait. */
  leftMs(session: SenderSession): number {
    const endsMs = this.#of(session)?.leaseEndsMs ?? 0;
    return Math.max(0, Math.ceil(endsMs - this.#now));
  }

  /** When the last thing came that restarts the transfer's limit. */
  movedMs(session: SenderSession): number {
    return this.#of(session)?.movedMs ?? 0;
  }

  isAborted(session: SenderSession): boolean {
    return this.#of(session)?.aborted === true;
  }

  #of({ transferId }: SenderSession): Granted | undefined {
    return transferId === null ? undefined : this.#granted.get(transferId);
  }

  /** @param seq of the RENEW that was heard last while it waited */
  granted(session: SenderSession, offer: Offer, pull: FrameOf<"PULL">, grant: FrameOf<"GRANT">, seq: number): void {
    const { limits, tokensPerBlock } = this.#around;
    if (session.transferId !== pull.transferId)
      this.#around.broken("I6: a GRANT is for another attempt than its session");
    if (grant.seq !== seq) this.#around.broken(`I2: GRANT names RENEW ${grant.seq}, heard was ${seq}`);
    const to = Math.min(pull.to, offer.tokens);
    this.#granted.set(pull.transferId, {
      session,
      offer,
      ranges: rangesToVerify(pull.verify ?? "off", pull.transferId, { from: pull.from, to, tokensPerBlock }),
      leaseEndsMs: this.#now + limits.leaseMs,
      movedMs: this.#now,
      told: grant.ready,
      byLayer: pull.readyIn === "layers",
      ahead: null,
      finished: false,
      digests: 0,
      aborted: false,
    });
  }

  told(frame: FrameOf<"READY"> | FrameOf<"FINISHED">): void {
    const granted = this.#granted.get(frame.transferId);
    // With its GRANT, which is looked at when the call is over.
    if (granted === undefined) return;
    const { session } = granted;
    if (session.state !== "GRANT" || session.transferId !== frame.transferId) {
      this.#around.broken(`I2: ${frame.type} in ${session.state}`);
    }
    if (frame.type === "READY" && frame.layers !== undefined) {
      if (!granted.byLayer) this.#around.broken("I2: a reader that knows no layers is told of some");
      granted.ahead = { tokens: frame.tokens, layers: frame.layers };
      granted.movedMs = this.#now;
      return;
    }
    granted.told = Math.max(granted.told, frame.tokens);
    if (granted.ahead !== null && granted.ahead.tokens <= granted.told) granted.ahead = null;
    if (frame.type === "FINISHED") granted.finished = true;
    else if (frame.digests !== undefined) {
      granted.digests += frame.digests.length / 8;
      return;
    }
    granted.movedMs = this.#now;
  }

  aborted({ transferId, code }: FrameOf<"ABORT">, cause: string | undefined): void {
    const granted = this.#granted.get(transferId);
    if (granted === undefined || granted.aborted) this.#around.broken("I5: ABORT without a GRANT, or a second one");
    else if (granted.session.state === "GRANT") this.#around.broken("I2: ABORT of a session that goes on");
    else granted.aborted = true;
    if (cause !== undefined && code !== cause) this.#around.broken(`I5: ABORT says ${code}, the cause is ${cause}`);
  }

  /** RENEW is heard. @param sessions those that it names */
  renewing(receiver: Epoch, seq: number, waiting: readonly TransferId[], sessions: readonly SenderSession[]): void {
    const asked = sessions.flatMap((session) => {
      const { state, lease, transferId: id } = session;
      return state === "GRANT" && lease !== null && id !== null ? [{ id, session, lease }] : [];
    });
    // Where there is nothing to extend the answer is written at once, also before those of earlier ones.
    this.#renewals[asked.length === 0 ? "unshift" : "push"]({ receiver, seq, waiting, asked });
  }

  /** RENEWED: all that were extended, and only those. */
  renewed(receiver: Epoch, frame: FrameOf<"RENEWED">): void {
    const index = this.#renewals.findIndex((one) => one.receiver === receiver && one.seq === frame.seq);
    const [renewal] = index === -1 ? [] : this.#renewals.splice(index, 1);
    if (renewal === undefined) {
      this.#around.broken(`I2: RENEWED ${frame.seq} answers nothing`);
      return;
    }
    const { held } = this.#around.plane;
    const expected = renewal.asked.filter(
      ({ session, lease }) => held.has(lease) && session.lease === lease && session.state === "GRANT",
    );
    const ids = expected.map(({ id }) => id);
    if (!same(ids, frame.ids)) {
      this.#around.broken(`I2: RENEWED names ${frame.ids.length} leases, ${ids.length} are held`);
    }
    if (!same(renewal.waiting, frame.waiting)) {
      this.#around.broken(`I4: RENEWED says that ${frame.waiting.length} wait, not ${renewal.waiting.length}`);
    }
    for (const id of ids) {
      const granted = this.#granted.get(id);
      if (granted !== undefined) granted.leaseEndsMs = this.#now + this.#around.limits.leaseMs;
    }
  }

  /** After every step. */
  check(): void {
    const { plane } = this.#around;
    if (this.#renewals.length !== plane.renewing) {
      this.#around.broken(`I4: ${this.#renewals.length} RENEWs have no answer, ${plane.renewing} are on their way`);
    }
  }

  /** Of a session in GRANT: its reader has heard all that there is to hear. */
  checkTold(session: SenderSession): void {
    const granted = this.#of(session);
    const facts = granted === undefined ? undefined : this.#around.factsOf(granted.offer);
    if (granted === undefined || facts === undefined) return;
    const { told, finished, digests, ranges, byLayer, ahead } = granted;
    if (byLayer && (ahead?.tokens !== facts.ahead?.tokens || ahead?.layers !== facts.ahead?.layers)) {
      const [heard, ready] = [ahead, facts.ahead].map((part) => `${part?.layers ?? 0} layers of ${part?.tokens ?? 0}`);
      this.#around.broken(`I4: a reader has heard of ${heard} tokens, ${ready} are ready`);
    }
    if (told !== facts.announced) {
      this.#around.broken(`I4: a reader has heard of ${told} tokens, ${facts.announced} are ready`);
    }
    if (facts.finished && !finished) this.#around.broken("I4: a reader has not heard the first tokens");
    let due = 0;
    while (2 * due < ranges.length && (ranges[2 * due + 1] ?? 0) <= facts.announced) due++;
    if (digests > due || (digests < due && this.#around.plane.digesting === 0)) {
      this.#around.broken(`I4: a reader has ${digests} digests, ${due} are due`);
    }
  }
}

const same = (left: readonly string[], right: readonly string[]): boolean =>
  left.length === right.length && left.every((id) => right.includes(id));
