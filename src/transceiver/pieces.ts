import type { PlaneRead } from "./data_plane.ts";

export interface Piece {
  /** Tokens [0, n) are here once it and all before it are. */
  readonly fullTo: number;
  readonly postedMs: number;
  read: PlaneRead | null;
  /** The clock after the poll that saw it end. */
  endedMs: number | null;
  accepted: boolean;
}

/** The reads of one attempt, in the order of their tokens, and of layers where a chunk comes in several. */
export class Pieces {
  readonly #all: Piece[] = [];
  readonly #skipped: number;
  #unquiet = 0;
  #void = false;
  #bytes = 0;

  constructor(skippedTokens: number) {
    this.#skipped = skippedTokens;
  }

  /** Tokens [0, n) have arrived for certain. */
  get leading(): number {
    let tokens = this.#skipped;
    for (const piece of this.#all) {
      if (!piece.accepted) break;
      tokens = piece.fullTo;
    }
    return tokens;
  }

  get running(): number {
    return this.#all.filter((piece) => piece.endedMs === null).length;
  }

  /** Ended, but not confirmed by the lease. */
  get late(): number {
    return this.#all.filter((piece) => piece.endedMs !== null && !piece.accepted).length;
  }

  /** Reads that may still touch the blocks. */
  get unquiet(): number {
    return this.#unquiet;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get count(): number {
    return this.#all.length;
  }

  /** Cancelled: nothing of it counts any more. */
  get void(): boolean {
    return this.#void;
  }

  accepted(tokens: number): boolean {
    return this.leading >= tokens;
  }

  post(fullTo: number, postedMs: number): Piece {
    const piece: Piece = { fullTo, postedMs, read: null, endedMs: null, accepted: false };
    this.#all.push(piece);
    this.#unquiet++;
    return piece;
  }

  ended(piece: Piece, atMs: number, bytes: number): void {
    piece.endedMs = atMs;
    this.#bytes += bytes;
  }

  accept(piece: Piece): void {
    piece.accepted = true;
  }

  /** A renewal written at `writtenMs` was held: what had ended before that was read from pinned blocks. @returns whether any was late */
  acceptEndedBefore(writtenMs: number): boolean {
    let any = false;
    for (const piece of this.#all) {
      if (piece.accepted || piece.endedMs === null || piece.endedMs > writtenMs) continue;
      piece.accepted = true;
      any = true;
    }
    return any;
  }

  quiet(): void {
    this.#unquiet--;
  }

  /** Idempotent. Reads that have not ended stop soon; each still reports when it is quiet. */
  cancel(): void {
    if (this.#void) return;
    this.#void = true;
    for (const piece of this.#all) if (piece.endedMs === null) piece.read?.cancel();
  }
}
