import type { BlockId } from "../../src/ids.ts";
import type { RankShare } from "../../src/kv/ranks.ts";
import type { LayerSpan } from "../../src/transceiver/read_front.ts";

/** Part of a block: `[from, to)` are places in the block, `block` is the index in the block table. */
export interface Piece {
  readonly block: number;
  readonly from: number;
  readonly to: number;
}

/** Of the model. */
export const LAYERS = 3;
const ALL = { from: 0, to: LAYERS };
/** What a token reads as whose layers do not belong together. */
const TORN = -1_000_000_000;

/** The content of a pool, one number a token and layer: the token's and the layer's together. A block that is given back is spoilt at once: the next owner writes it. */
export class SimMemory {
  readonly tokensPerBlock: number;
  /** For each layer, places of all blocks. */
  readonly #layers: readonly Int32Array[];
  readonly #generations: Uint32Array;
  readonly #broken: (what: string) => void;
  #garbage = 0;
  /** Rises with every change. */
  version = 0;

  constructor(blocks: number, tokensPerBlock: number, broken: (what: string) => void) {
    this.tokensPerBlock = tokensPerBlock;
    this.#layers = Array.from({ length: LAYERS }, (_, layer) => new Int32Array(blocks * tokensPerBlock).fill(layer));
    this.#generations = new Uint32Array(blocks);
    this.#broken = broken;
  }

  generationOf(id: BlockId): number {
    return this.#generations[id] ?? 0;
  }

  freed(ids: readonly BlockId[]): void {
    this.version++;
    for (const id of ids) {
      this.#generations[id] = this.generationOf(id) + 1;
      this.#fill(--this.#garbage, id * this.tokensPerBlock, (id + 1) * this.tokensPerBlock);
    }
  }

  /** Given to somebody else as a whole. */
  spoil(): void {
    this.version++;
    this.#fill(--this.#garbage);
  }

  #fill(value: number, from?: number, to?: number): void {
    for (const [layer, content] of this.#layers.entries()) content.fill(value + layer, from, to);
  }

  write(table: readonly BlockId[], token: number, value: number, { from, to }: LayerSpan = ALL): void {
    this.version++;
    const place = this.#place(table, token);
    for (let layer = from; layer < to; layer++) (this.#layers[layer] as Int32Array)[place] = value + layer;
  }

  read(table: ArrayLike<number>, token: number): number {
    const place = this.#place(table, token);
    const value = this.#layers[0]?.[place] ?? 0;
    return this.#layers.every((content, layer) => content[place] === value + layer) ? value : TORN;
  }

  #place(table: ArrayLike<number>, token: number): number {
    const block = table[Math.floor(token / this.tokensPerBlock)] ?? 0;
    return block * this.tokensPerBlock + (token % this.tokensPerBlock);
  }

  piecesOf(fromToken: number, toToken: number): Piece[] {
    const pieces: Piece[] = [];
    for (let token = fromToken; token < toToken; ) {
      const block = Math.floor(token / this.tokensPerBlock);
      const end = Math.min(toToken, (block + 1) * this.tokensPerBlock);
      pieces.push({ block, from: token - block * this.tokensPerBlock, to: end - block * this.tokensPerBlock });
      token = end;
    }
    return pieces;
  }

  /** One token of a block is not what was read. */
  flip(block: BlockId, place: number): void {
    this.version++;
    const at = block * this.tokensPerBlock + place;
    const [content] = this.#layers as [Int32Array];
    content[at] = (content[at] ?? 0) ^ 1;
  }

  /** Of each pair of tokens in `ranges`, 8 bytes, as the data plane gives them. */
  digests(table: Uint32Array, ranges: Uint32Array, part: RankShare | undefined): Uint8Array {
    const digests = new DataView(new ArrayBuffer(4 * ranges.length));
    for (let at = 0; at < ranges.length; at += 2) {
      let hash = 1 + (part?.heads.from ?? 0) * 16 + (part?.heads.to ?? 0);
      for (let token = ranges[at] ?? 0; token < (ranges[at + 1] ?? 0); token++) {
        const place = this.#place(table, token);
        for (const content of this.#layers) hash = Math.imul(hash ^ (content[place] ?? 0), 0x9e3779b1);
      }
      digests.setInt32(4 * at, hash);
    }
    return new Uint8Array(digests.buffer);
  }

  /** One piece of a read. Landing in a block that has changed hands since the read was posted is what I3 forbids. */
  copy(
    from: SimMemory,
    source: BlockId,
    target: BlockId,
    piece: Piece,
    generation: number,
    span: LayerSpan | null,
  ): void {
    if (this.generationOf(target) !== generation) {
      this.#broken(`I3: a read wrote block ${target} after it was given back`);
    }
    this.version++;
    const start = source * this.tokensPerBlock;
    const to = target * this.tokensPerBlock + piece.from;
    for (let layer = span?.from ?? 0; layer < (span?.to ?? LAYERS); layer++) {
      const content = from.#layers[layer]?.subarray(start + piece.from, start + piece.to);
      if (content !== undefined) this.#layers[layer]?.set(content, to);
    }
  }
}
