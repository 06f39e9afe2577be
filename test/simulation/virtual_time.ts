interface Step {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
}

/** True time, in ms, that only moves from step to step. No process sees it: each has a clock of its own. */
export class VirtualTime {
  #now = 0;
  #order = 0;
  readonly #heap: Step[] = [];

  get now(): number {
    return this.#now;
  }

  get idle(): boolean {
    return this.#heap.length === 0;
  }

  /** Steps of one moment run in the order in which they were asked for. */
  at(time: number, run: () => void): void {
    const heap = this.#heap;
    heap.push({ at: Math.max(time, this.#now), order: this.#order++, run });
    let child = heap.length - 1;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      if (!this.#before(child, parent)) break;
      this.#swap(child, parent);
      child = parent;
    }
  }

  after(delay: number, run: () => void): void {
    this.at(this.#now + delay, run);
  }

  /** Runs the next step and what it leaves to microtasks; false when there is none before `end`. */
  async step(end: number): Promise<boolean> {
    const first = this.#heap[0];
    if (first === undefined || first.at > end) return false;
    this.#removeFirst();
    this.#now = first.at;
    first.run();
    // A macrotask: every chain of promises that the step began is at rest before the next one.
    await new Promise((resolve) => setImmediate(resolve));
    return true;
  }

  #removeFirst(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    heap[0] = last;
    let parent = 0;
    for (;;) {
      let least = parent;
      for (const child of [2 * parent + 1, 2 * parent + 2]) {
        if (child < heap.length && this.#before(child, least)) least = child;
      }
      if (least === parent) return;
      this.#swap(least, parent);
      parent = least;
    }
  }

  #before(left: number, right: number): boolean {
    const a = this.#heap[left] as Step;
    const b = this.#heap[right] as Step;
    return a.at < b.at || (a.at === b.at && a.order < b.order);
  }

  #swap(left: number, right: number): void {
    const kept = this.#heap[left] as Step;
    this.#heap[left] = this.#heap[right] as Step;
    this.#heap[right] = kept;
  }
}
