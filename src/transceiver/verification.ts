import type { TransferId } from "../ids.ts";

/** What a receiver compares with the sender's digests: nothing, one block in 16, every block. */
export const verifyModes = ["off", "sampled", "full"] as const;
export type VerifyMode = (typeof verifyModes)[number];

const DIGEST_BYTES = 8;
/** Digests that one READY carries at most: 512 KiB, half of the frame limit. */
export const DIGESTS_LIMIT = 65_536;
const SAMPLE_MASK = 15;

/** Final mixing of MurmurHash3: every bit of the input decides every bit of the output. */
function mix(word: number): number {
  let hash = word ^ (word >>> 16);
  hash = Math.imul(hash, 0x85ebca6b);
  hash ^= hash >>> 13;
  hash = Math.imul(hash, 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

/** Mixes the 128 random bits; not the attempt, so that a second one compares the same blocks as the first. */
function seedOf(transferId: TransferId): number {
  let seed = 0;
  for (let at = 0; at < 32; at += 8) seed = mix(seed ^ Number.parseInt(transferId.slice(at, at + 8), 16));
  return seed;
}

export interface PulledTokens {
  readonly from: number;
  readonly to: number;
  /** Of the sender's blocks, which are the units that are compared. */
  readonly tokensPerBlock: number;
}

/** The parts of a pull whose digests are compared, as pairs of tokens [from, to), one a block; both sides compute the same. */
export function rangesToVerify(mode: VerifyMode, transferId: TransferId, pulled: PulledTokens): Uint32Array {
  const { from, to, tokensPerBlock } = pulled;
  const ranges: number[] = [];
  if (mode === "off" || to <= from) return new Uint32Array(0);
  const seed = mode === "sampled" ? seedOf(transferId) : 0;
  for (let block = Math.floor(from / tokensPerBlock); block * tokensPerBlock < to; block++) {
    if (mode === "sampled" && (mix(seed ^ mix(block + 1)) & SAMPLE_MASK) !== 0) continue;
    ranges.push(Math.max(from, block * tokensPerBlock), Math.min(to, (block + 1) * tokensPerBlock));
  }
  return Uint32Array.from(ranges);
}

/** The block that holds a token. A table that is shorter than its sequence lacks the first blocks, which no window reaches. */
export const blockAt = (
  table: ArrayLike<number>,
  token: number,
  tokens: number,
  tokensPerBlock: number,
): number | undefined =>
  table[Math.floor(token / tokensPerBlock) - Math.max(0, Math.ceil(tokens / tokensPerBlock) - table.length)];

/** Why a transfer ends whose digests a GPU could not compute. */
export const NO_DIGESTS =
  "the digests of its blocks could not be computed; what CUDA said stands in this process's log";

/** A stretch of a pull's digests: `first` is the place of the first one in the order of the ranges. */
export interface Digests {
  readonly first: number;
  readonly bytes: Uint8Array;
}

/** Cut so that each part fits into a frame. */
export function* partsOf({ first, bytes }: Digests): Iterable<Digests> {
  for (let at = 0; at < bytes.length; at += DIGESTS_LIMIT * DIGEST_BYTES) {
    yield { first: first + at / DIGEST_BYTES, bytes: bytes.subarray(at, at + DIGESTS_LIMIT * DIGEST_BYTES) };
  }
}

/** The sender's side: which digests a reader still waits for. */
export class OwedDigests {
  readonly #ranges: Uint32Array;
  #asked = 0;

  constructor(ranges: Uint32Array) {
    this.#ranges = ranges;
  }

  /** Ranges that are complete now that tokens [0, ready) are there; each is given once. */
  due(ready: number): { readonly first: number; readonly ranges: Uint32Array } | null {
    const first = this.#asked;
    while (2 * this.#asked < this.#ranges.length && (this.#ranges[2 * this.#asked + 1] ?? 0) <= ready) this.#asked++;
    return this.#asked === first ? null : { first, ranges: this.#ranges.slice(2 * first, 2 * this.#asked) };
  }
}

/** The receiver's side: both sides' digests of one attempt. */
export class DigestComparison {
  readonly ranges: Uint32Array;
  readonly #theirs: Uint8Array;
  readonly #known: Uint8Array;
  #missing: number;
  #own: Uint8Array | null = null;

  constructor(ranges: Uint32Array) {
    this.ranges = ranges;
    this.#missing = ranges.length / 2;
    this.#known = new Uint8Array(this.#missing);
    this.#theirs = new Uint8Array(DIGEST_BYTES * this.#missing);
  }

  /** Nothing is compared. */
  get isEmpty(): boolean {
    return this.ranges.length === 0;
  }

  /** All digests of the sender are here. */
  get hasTheirs(): boolean {
    return this.#missing === 0;
  }

  /** Nothing is missing on either side. */
  get isComplete(): boolean {
    return this.hasTheirs && this.#own !== null;
  }

  /** What lies outside of the ranges, or is no whole digest, is ignored. */
  takeTheirs({ first, bytes }: Digests): void {
    for (let at = 0; at + DIGEST_BYTES <= bytes.length && first + at / DIGEST_BYTES < this.#known.length; at += 8) {
      const index = first + at / DIGEST_BYTES;
      if (this.#known[index] === 0) this.#missing--;
      this.#known[index] = 1;
      this.#theirs.set(bytes.subarray(at, at + DIGEST_BYTES), DIGEST_BYTES * index);
    }
  }

  /** The own ones could not be computed. */
  get ownFailed(): boolean {
    return this.#own !== null && this.#own.length < DIGEST_BYTES * this.#known.length;
  }

  /** @param digests of all ranges; none when they could not be computed */
  takeOwn(digests: Uint8Array): void {
    this.#own = digests;
  }

  /** The sender is dead: what has not come is not compared. */
  waiveMissing(): void {
    this.#missing = 0;
  }

  /** Ranges whose digests differ; call it when `isComplete`. */
  differences(): readonly { readonly from: number; readonly to: number }[] {
    const different = [];
    for (const [index, known] of this.#known.entries()) {
      const at = DIGEST_BYTES * index;
      if (known === 0 || Buffer.compare(part(this.#theirs, at), part(this.#own ?? this.#theirs, at)) === 0) continue;
      different.push({ from: this.ranges[2 * index] ?? 0, to: this.ranges[2 * index + 1] ?? 0 });
    }
    return different;
  }
}

const part = (digests: Uint8Array, at: number): Uint8Array => digests.subarray(at, at + DIGEST_BYTES);
