/** Layers [from, to) of the model. */
export interface LayerSpan {
  readonly from: number;
  readonly to: number;
}

/** One read: tokens [fromToken, toToken) in some layers. */
export interface ReadBox {
  readonly fromToken: number;
  readonly toToken: number;
  /** null: in all that this rank holds. */
  readonly layers: LayerSpan | null;
  /** Once this read and those before it have arrived, tokens [0, n) are here in all layers. */
  readonly fullTo: number;
}

interface Part {
  readonly toToken: number;
  /** Of the model, from its first on. */
  readonly layers: number;
}

/**
 * What of a sequence may be read, and what of that has been asked for. Tokens come in order; behind those that are visible in all layers one
 * chunk may be visible in the first layers only (docs/decisions/044-layer-wise-readiness.md). Each element is handed out once.
 */
export class ReadFront {
  readonly #tokens: number;
  readonly #own: LayerSpan;
  #announced: number;
  #ahead: Part | null = null;
  #asked: number;
  /** Of the chunk behind `#asked`. */
  #part: Part | null = null;

  /** @param own layers that this rank holds */
  constructor(sequence: { readonly tokens: number; readonly skipTokens: number }, own: LayerSpan) {
    this.#tokens = sequence.tokens;
    this.#own = own;
    this.#announced = sequence.skipTokens;
    this.#asked = sequence.skipTokens;
  }

  /** Tokens [0, n) are here or asked for, in all layers. */
  get asked(): number {
    return this.#asked;
  }

  /** Tokens [0, n) are visible in all layers. @returns whether that is more than before */
  announce(tokens: number): boolean {
    if (tokens <= this.#announced) return false;
    this.#announced = Math.min(tokens, this.#tokens);
    return true;
  }

  /** Tokens [0, n) are visible in the model's first `layers` layers. @returns whether there is more to read */
  announceLayers(tokens: number, layers: number): boolean {
    // All that this rank has of the model: what later layers do is nothing to it.
    if (layers >= this.#own.to) return this.announce(tokens);
    if (tokens <= this.#announced || layers <= this.#own.from) return false;
    this.#ahead = { toToken: Math.min(tokens, this.#tokens), layers };
    return this.hasMore;
  }

  get hasMore(): boolean {
    return this.#next() !== undefined;
  }

  /** The next read; undefined when all that is visible is asked for. */
  take(): ReadBox | undefined {
    const box = this.#next();
    if (box === undefined) return undefined;
    if (box.fullTo > this.#asked) {
      this.#asked = box.fullTo;
      this.#part = null;
    } else if (box.layers !== null) this.#part = { toToken: box.toToken, layers: box.layers.to };
    return box;
  }

  #next(): ReadBox | undefined {
    const fromToken = this.#asked;
    const { from, to } = this.#own;
    const [part, ahead, announced] = [this.#part, this.#ahead, this.#announced];
    if (part !== null && announced >= part.toToken) {
      return { fromToken, toToken: part.toToken, layers: { from: part.layers, to }, fullTo: part.toToken };
    }
    if (part === null && announced > fromToken) {
      return { fromToken, toToken: announced, layers: null, fullTo: announced };
    }
    if (ahead === null || ahead.toToken <= fromToken) return undefined;
    // The sender computes one chunk after another: while it is in one, that one has its end.
    if (part !== null && (ahead.toToken !== part.toToken || ahead.layers <= part.layers)) return undefined;
    const layers = { from: part?.layers ?? from, to: ahead.layers };
    return { fromToken, toToken: ahead.toToken, layers, fullTo: fromToken };
  }
}
