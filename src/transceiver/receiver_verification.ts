import { KvError } from "../errors.ts";
import type { BlockId } from "../ids.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { DataPlane } from "./data_plane.ts";
import type { FrameOf } from "./protocol.ts";
import type { PullAttempt } from "./pull_attempt.ts";
import { blockAt, DigestComparison, rangesToVerify, type VerifyMode } from "./verification.ts";

/** Of both sides' blocks. */
export interface BlockSizes {
  readonly own: number;
  readonly sender: number;
}

export interface OwnKv {
  readonly blocks: readonly BlockId[];
  readonly sequenceTokens: number;
  readonly part: RankPart | undefined;
}

export interface Verified {
  readonly peer: string;
  readonly blocks: readonly BlockId[];
  readonly attempt: PullAttempt;
  /** Of the sequence. */
  readonly tokens: number;
  readonly sizes: BlockSizes;
}

export interface Mismatch {
  readonly blocks: number;
  readonly error: KvError;
  /** Whether another attempt may be made. */
  readonly repeatable: boolean;
}

/** Compares the digests of what one pull has read with those of its sender (docs/decisions/028-digests-of-moved-blocks.md). */
export class ReceiverVerification {
  readonly #mode: VerifyMode;
  #comparison = new DigestComparison(new Uint32Array(0));
  /** Whose own digests are known or being computed. */
  #asked: DigestComparison | null = null;
  /** An attempt has ended by a difference already. */
  #differed = false;
  /** It is dead or gone: no digest comes any more, and no other attempt can be made. */
  #senderGone = false;

  constructor(mode: VerifyMode) {
    this.#mode = mode;
  }

  /** A new attempt is compared from the beginning. */
  begin({ transferId }: PullAttempt, from: number, to: number, { sender: tokensPerBlock }: BlockSizes): void {
    this.#comparison = new DigestComparison(rangesToVerify(this.#mode, transferId, { from, to, tokensPerBlock }));
  }

  /** Nothing is compared. */
  get isEmpty(): boolean {
    return this.#comparison.isEmpty;
  }

  /** All digests of the sender are here. */
  get hasTheirs(): boolean {
    return this.#comparison.hasTheirs;
  }

  /** Both sides' digests are here. */
  get isComplete(): boolean {
    return this.#comparison.isComplete;
  }

  /** This side's digests could not be computed. */
  get failed(): boolean {
    return this.#comparison.ownFailed;
  }

  /** @returns whether the frame holds any */
  take({ digestsFrom: first, digests: bytes }: FrameOf<"READY">): boolean {
    if (first === undefined || bytes === undefined) return false;
    this.#comparison.takeTheirs({ first, bytes });
    return true;
  }

  senderIsGone(): void {
    this.#senderGone = true;
  }

  /** All is read: of a sender that is gone, a sample is what has come of it. */
  waiveMissing(): void {
    if (this.#senderGone && this.#mode === "sampled") this.#comparison.waiveMissing();
  }

  /**
   * Has the own digests computed, once an attempt; all of its tokens must be here. `done` each time that something was computed, unless
   * another attempt has begun meanwhile.
   */
  askOwn(plane: DataPlane, own: OwnKv, done: () => void): void {
    const comparison = this.#comparison;
    if (this.#asked === comparison) return;
    this.#asked = comparison;
    const { ranges } = comparison;
    const digested = (digests: Uint8Array): void => {
      comparison.takeOwn(digests);
      if (this.#comparison === comparison) done();
    };
    plane.digest({ ...own, blocks: Uint32Array.from(own.blocks), ranges }, digested);
  }

  /** @returns undefined while digests are missing on either side, null when all are equal */
  compare({ peer, blocks, attempt, tokens, sizes }: Verified): Mismatch | null | undefined {
    if (!this.#comparison.isComplete) return undefined;
    const [first, ...more] = this.#comparison.differences();
    if (first === undefined) return null;
    const repeatable = !this.#differed && !this.#senderGone;
    this.#differed = true;
    const error = new KvError("DIGEST_MISMATCH", {
      transfer: attempt.transferId,
      peer,
      index: Math.floor(first.from / sizes.sender),
      block: blockAt(blocks, first.from, tokens, sizes.own) ?? "?",
      source: blockAt(attempt.source, first.from, tokens, sizes.sender) ?? "?",
      from: first.from,
      to: first.to,
      more: more.length,
    });
    return { blocks: 1 + more.length, error, repeatable };
  }
}
