/** Words of the data plane that lead out of a receiver's state: of a read, that it has ended and that it touches nothing any more; its digests. */
const LEADS_OUT = { READ: ["ended", "quiet"], VERIFY: ["digests"], RETRY: ["quiet"] };

/** A data plane around the real one that lets a receiver stand in a state: what would lead out of it is told when `letGo` says so. */
export class HeldPlane {
  #held = null;
  #words = [];

  /** @param {"READ" | "VERIFY" | "RETRY"} state RETRY: digests differ, and what was read is not quiet yet */
  hold(state) {
    this.#held = state;
  }

  letGo() {
    this.#held = null;
    for (const tell of this.#words.splice(0)) tell();
  }

  around = (real) => {
    const members = {
      read: (request, listener) =>
        real.read(request, {
          // As if the copies had taken that long.
          ended: (end) => this.#told("ended", () => listener.ended({ ...end, atMs: real.nowMs() })),
          quiet: () => this.#told("quiet", () => listener.quiet()),
        }),
      digest: (request, done) =>
        real.digest(request, (digests) => {
          if (this.#held === "RETRY") digests[0] ^= 1;
          this.#told("digests", () => done(digests));
        }),
    };
    return new Proxy(real, {
      get: (_, name) => members[name] ?? (typeof real[name] === "function" ? real[name].bind(real) : real[name]),
    });
  };

  #told(word, tell) {
    if (this.#held !== null && LEADS_OUT[this.#held].includes(word)) this.#words.push(tell);
    else tell();
  }
}
