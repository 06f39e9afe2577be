/** Rising token counts for one reader at a time; only the newest matters, so nothing piles up. */
export class Progress implements AsyncIterable<number> {
  #tokens = 0;
  #ended = false;
  #error: Error | null = null;
  readonly #wakers = new Set<() => void>();

  advance(tokens: number): void {
    this.#tokens = Math.max(this.#tokens, tokens);
    this.#wake();
  }

  end(error: Error | null): void {
    this.#ended = true;
    this.#error = error;
    this.#wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<number, void> {
    let seen = 0;
    for (;;) {
      if (this.#tokens > seen) {
        seen = this.#tokens;
        yield seen;
      } else if (this.#ended) {
        if (this.#error !== null) throw this.#error;
        return;
      } else {
        await new Promise<void>((resolve) => this.#wakers.add(resolve));
      }
    }
  }

  #wake(): void {
    const wakers = [...this.#wakers];
    this.#wakers.clear();
    for (const wake of wakers) wake();
  }
}
