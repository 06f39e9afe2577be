import type { ReadEnd } from "../../src/transceiver/data_plane.ts";
import { VIEW_SHARE } from "../../src/transceiver/lease_view.ts";
import type { LayerSpan } from "../../src/transceiver/read_front.ts";
import type { ReceiverSession } from "../../src/transceiver/receiver_session.ts";
import { LAYERS } from "./memory.ts";

/** A read of the attempt at hand that was seen complete. */
export interface ReadSeen {
  readonly fromToken: number;
  readonly toToken: number;
  readonly layers: LayerSpan | null;
  readonly endedMs: number;
  counts: boolean;
}

const LONGEST_READ_SHARE = 1 / 3;

interface Around {
  readonly leaseMs: number;
  readonly strict: boolean;
  /** What the caller has heard. */
  told(): number;
  broken(what: string): void;
}

/** What the reads of one pull mean (lease-model.md section 3): counted in the view, by a renewal, or because their sender died with the lease held. */
export class ReadDuties {
  readonly #session: ReceiverSession;
  readonly #around: Around;
  #reads: ReadSeen[] = [];
  #baseMs = 0;
  #isOrphan = false;

  constructor(session: ReceiverSession, around: Around) {
    this.#session = session;
    this.#around = around;
  }

  get #isReading(): boolean {
    return ["READ", "FINISH", "ORPHAN"].includes(this.#session.state);
  }

  /** @param baseMs the clock before the newest request was written that is known to be heard */
  granted(baseMs: number): void {
    this.#baseMs = baseMs;
    this.#reads = [];
  }

  whileEnded(
    posted: Pick<ReadSeen, "fromToken" | "toToken" | "layers"> & { readonly postedMs: number },
    end: ReadEnd,
    call: () => void,
  ): void {
    const { leaseMs, strict } = this.#around;
    const { fromToken, toToken, layers, postedMs } = posted;
    const isReading = this.#isReading;
    call();
    if (!isReading || end.status !== "ok") return;
    const inView = end.atMs - this.#baseMs < VIEW_SHARE * leaseMs;
    const isShort = end.atMs - postedMs <= leaseMs * LONGEST_READ_SHARE;
    const counts = this.#isOrphan || (!strict && isShort && inView);
    this.#reads.push({ fromToken, toToken, layers, endedMs: end.atMs, counts });
    this.#checkTold();
  }

  whileRenewed(writtenMs: number, call: () => void): void {
    if (this.#session.state === "READ") {
      this.#baseMs = Math.max(this.#baseMs, writtenMs);
      for (const read of this.#reads) if (read.endedMs <= writtenMs) read.counts = true;
    }
    call();
    this.#checkTold();
  }

  /** The sender is known dead. */
  whileDead(nowMs: number, call: () => void): void {
    const { state } = this.#session;
    if ((state === "READ" || state === "FINISH") && nowMs - this.#baseMs < VIEW_SHARE * this.#around.leaseMs) {
      this.#isOrphan = true;
      for (const read of this.#reads) read.counts = true;
    }
    call();
    this.#checkTold();
  }

  /** What counts is told to the caller, unless the pull has ended or begins anew. */
  #checkTold(): void {
    const { state, outcome } = this.#session;
    const { told, broken } = this.#around;
    const goesOn = this.#isReading || state === "VERIFY" || (this.#isOrphan && state === "RETRY");
    if (outcome !== null || !goesOn) return;
    let leading = this.#session.offer.skipTokens;
    // Of the chunk behind `leading`.
    let inLayers = 0;
    const firstOf = ({ layers }: ReadSeen): number => layers?.from ?? 0;
    const inOrder = this.#reads.toSorted(
      (one, other) => one.fromToken - other.fromToken || firstOf(one) - firstOf(other),
    );
    for (const read of inOrder) {
      if (!read.counts || read.fromToken !== leading || firstOf(read) !== inLayers) break;
      inLayers = read.layers?.to ?? LAYERS;
      if (inLayers < LAYERS) continue;
      leading = read.toToken;
      inLayers = 0;
    }
    if (told() < leading) broken(`I4: tokens up to ${leading} are read, and the caller hears of ${told()}`);
  }

  /** @param nobodyAsks no renewal is on its way that could tell of late reads */
  checkLate(nobodyAsks: boolean): void {
    if (!nobodyAsks) return;
    if (this.#reads.some(({ counts }) => !counts)) {
      this.#around.broken("I4: a read is late, and nobody asks whether it counts");
    }
  }
}
