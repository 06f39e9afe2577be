import type { Logger } from "../observability/log.ts";
import type { Handoff } from "./context_reply.ts";
import { exchange } from "./exchange.ts";
import { wordsOf } from "./hop_failure.ts";
import { joinSignals } from "./joined_signal.ts";
import type { RouterMetrics } from "./router_metrics.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

export interface AbandonOptions {
  readonly log: Logger;
  readonly metrics: RouterMetrics;
  /** KVT_AUTH_TOKEN, which the workers ask for on /kv/abort. */
  readonly authToken: string | null;
}

const LIMIT_MS = 5_000;
const BYTES_MAX = 64 * 1024;

/**
 * Codes of a 404 that is as good as a yes: what was to end has ended by itself, or will when its worker reads that the connection is
 * closed. Any other 404, of a worker without the route or of a proxy before it, is nobody's word that a block is free.
 */
const ENDED_BY_ITSELF = { release: "no_offer", abort: "request_not_found" } as const;

/** One POST to a worker's route of that name. */
interface Order {
  readonly kind: "release" | "abort";
  readonly worker: UpstreamWorker;
  readonly body: string;
  readonly requestId: string;
}

/**
 * Tells workers that nobody will use what they hold, so that no block waits for a timer (S135). Nobody waits for the outcome except
 * `settled`. Workers of other makes have no such routes; there the closed connection is all that can be said.
 */
export class Abandon {
  readonly #options: AbandonOptions;
  readonly #running = new Set<Promise<void>>();
  readonly #aborts = new Map<string, Promise<void>>();

  constructor(options: AbandonOptions) {
    this.#options = options;
  }

  /** Gives back the KV of a context reply. */
  handoff(handoff: Handoff, requestId: string): void {
    if (!handoff.worker.isKvt || handoff.opaqueState === undefined) return;
    // Written by hand: the id may be above 2^53.
    const body = `{"ctx_request_id":${handoff.ctxRequestId},"encoded_opaque_state":${JSON.stringify(handoff.opaqueState)}}`;
    void this.#post({ kind: "release", worker: handoff.worker, body, requestId });
  }

  /** Ends a request whose reply did not arrive, so that its hand-off, if there is one, is known to nobody. */
  request(worker: UpstreamWorker, requestId: string): void {
    if (!worker.isKvt) return;
    const key = abortKey(worker, requestId);
    const body = JSON.stringify({ request_id: requestId });
    const running = this.#post({ kind: "abort", worker, body, requestId }).then(() => {
      if (this.#aborts.get(key) === running) this.#aborts.delete(key);
    });
    this.#aborts.set(key, running);
  }

  /** Resolves when no abort of this id is on its way to the worker: it would hit whatever is sent there under the id now. */
  aborted(worker: UpstreamWorker, requestId: string): Promise<void> {
    return this.#aborts.get(abortKey(worker, requestId)) ?? Promise.resolve();
  }

  /** Resolves when nothing is on its way any more. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  #post(order: Order): Promise<void> {
    const running = this.#send(order).finally(() => this.#running.delete(running));
    this.#running.add(running);
    return running;
  }

  async #send({ kind, worker, body, requestId }: Order): Promise<void> {
    const { log, metrics, authToken } = this.#options;
    const limit = joinSignals([], LIMIT_MS);
    try {
      const answer = await exchange(worker.control, {
        method: "POST",
        path: `/kv/${kind}`,
        headers: {
          "content-type": "application/json",
          "x-request-id": requestId,
          ...(authToken === null ? {} : { authorization: `Bearer ${authToken}` }),
        },
        body,
        signal: limit.signal,
        silenceMs: 0,
        bytesMax: BYTES_MAX,
      });
      const { code } = wordsOf(answer);
      const isDone = answer.status === 200 || (answer.status === 404 && code === ENDED_BY_ITSELF[kind]);
      metrics.releases.inc({ kind, outcome: isDone ? "done" : "refused" });
      if (isDone) return;
      log.warn({ requestId, worker: worker.url, kind, status: answer.status, code }, "worker refused to let go");
    } catch (error) {
      metrics.releases.inc({ kind, outcome: "unreachable" });
      const why = error instanceof Error ? error.message : String(error);
      log.warn({ requestId, worker: worker.url, kind, why }, "worker could not be told to let go");
    } finally {
      limit.dispose();
    }
  }
}

const abortKey = (worker: UpstreamWorker, requestId: string): string => `${worker.position} ${requestId}`;
