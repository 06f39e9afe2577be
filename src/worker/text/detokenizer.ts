/** What the detokeniser needs of a tokenizer. */
export interface TokenBytes {
  bytesOf(id: number): Uint8Array;
  isSpecial(id: number): boolean;
}

/**
 * Turns tokens into text as they come; bytes that don't complete a character are held back. The pieces joined are the text of
 * `decode` over all ids. A generation worker pushes token 0 of the hand-off first, so a character split there comes out whole.
 */
export class IncrementalDetokenizer {
  readonly #tokens: TokenBytes;
  readonly #skipSpecials: boolean;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(tokens: TokenBytes, options: { readonly skipSpecials: boolean }) {
    this.#tokens = tokens;
    this.#skipSpecials = options.skipSpecials;
  }

  /** The text that is complete with this token, often empty. */
  push(id: number): string {
    if (this.#skipSpecials && this.#tokens.isSpecial(id)) return "";
    return this.#decoder.decode(this.#tokens.bytesOf(id), { stream: true });
  }

  /** At the end: half a character becomes U+FFFD. */
  flush(): string {
    return this.#decoder.decode();
  }
}
