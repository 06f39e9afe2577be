import { KvError } from "../errors.ts";

export interface AdmissionLimits {
  /** Requests in flight. */
  readonly requests: number;
  /** Bytes of request bodies in flight: each is kept until its hops have been sent. */
  readonly bodyBytes: number;
}

/** One admitted request. */
export interface Ticket {
  /** The body turned out to have this size (it was not announced, or was announced wrongly). */
  bodyRead(bytes: number): void;
  /** Whether another request in flight carries the same id, which clients choose. Also right after `leave`. */
  sharesId(): boolean;
  /** The request has ended; the second call does nothing. */
  leave(): void;
}

/** Bounds what the router holds at once (S124, S136); it does not queue, because the workers do. */
export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #ids = new Map<string, number>();
  #requests = 0;
  #bodyBytes = 0;
  #onEmpty: (() => void)[] = [];

  constructor(limits: AdmissionLimits) {
    this.#limits = limits;
  }

  get inFlight(): number {
    return this.#requests;
  }

  /**
   * @param announcedBytes Content-Length of the request; 0 when it has none
   * @throws KvError TOO_MANY_REQUESTS
   */
  enter(requestId: string, announcedBytes: number): Ticket {
    const { requests, bodyBytes } = this.#limits;
    if (this.#requests >= requests) {
      throw new KvError("TOO_MANY_REQUESTS", { what: `${this.#requests} requests are`, limit: requests });
    }
    if (this.#bodyBytes > 0 && this.#bodyBytes + announcedBytes > bodyBytes) {
      throw new KvError("TOO_MANY_REQUESTS", {
        what: `${this.#bodyBytes} bytes of request bodies are`,
        limit: bodyBytes,
      });
    }
    this.#requests += 1;
    this.#bodyBytes += announcedBytes;
    this.#ids.set(requestId, (this.#ids.get(requestId) ?? 0) + 1);
    let counted = announcedBytes;
    let left = false;
    return {
      bodyRead: (bytes) => {
        if (left) return;
        this.#bodyBytes += bytes - counted;
        counted = bytes;
      },
      sharesId: () => (this.#ids.get(requestId) ?? 0) > (left ? 0 : 1),
      leave: () => {
        if (left) return;
        left = true;
        this.#requests -= 1;
        this.#bodyBytes -= counted;
        this.#forget(requestId);
        if (this.#requests === 0) for (const wake of this.#onEmpty.splice(0)) wake();
      },
    };
  }

  /** Resolves when nothing is in flight. */
  empty(): Promise<void> {
    return this.#requests === 0 ? Promise.resolve() : new Promise((resolve) => this.#onEmpty.push(resolve));
  }

  #forget(requestId: string): void {
    const count = (this.#ids.get(requestId) ?? 1) - 1;
    if (count === 0) this.#ids.delete(requestId);
    else this.#ids.set(requestId, count);
  }
}
