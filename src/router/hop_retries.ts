import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "../observability/log.ts";
import type { Hop } from "../openai/index.ts";
import type { Fleet, Wish } from "./fleet.ts";
import { HopFailure } from "./hop_failure.ts";
import type { RoutedCall } from "./routed_call.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

export interface HopRetriesOptions {
  readonly fleet: Fleet;
  readonly log: Logger;
  /** Tries after the first, per hop (S46). */
  readonly maxRetries: number;
  /** Before the next try; a test may leave it out. */
  readonly pause?: (tries: number, signal: AbortSignal) => Promise<void>;
}

const PAUSE_MS_MIN = 50;
const PAUSE_MS_MAX = 1_000;

/** Tries one hop at one worker after another (S133). */
export class HopRetries {
  readonly #options: HopRetriesOptions;

  constructor(options: HopRetriesOptions) {
    this.#options = options;
  }

  /**
   * Chooses a worker, runs `attempt` there, and on a failure that may be repeated goes on with another one.
   * @param wish its `tried` grows by every worker that failed
   * @throws what the last attempt threw; KvError CLUSTER_NOT_READY when there is nobody to ask
   */
  async run<T>(
    hop: Hop,
    call: RoutedCall,
    wish: Wish & { readonly tried: Set<UpstreamWorker> },
    attempt: (worker: UpstreamWorker, isRetry: boolean) => Promise<T>,
  ): Promise<T> {
    const { fleet, log, maxRetries } = this.#options;
    let last: HopFailure | undefined;
    for (let tries = 0; ; tries++) {
      const choice = chooseOr(last, () => fleet.choose(hop, wish));
      try {
        return await attempt(choice.worker, tries > 0);
      } catch (error) {
        if (!(error instanceof HopFailure) || error.hop !== hop) throw error;
        wish.tried.add(choice.worker);
        if (tries >= maxRetries || call.answer.started || call.signal.aborted) throw error;
        if (error.verdict !== "retry" && error.verdict !== "elsewhere") throw error;
        if (error.verdict === "elsewhere" && !fleet.hasOther(hop, wish)) throw error;
        last = error;
        log.warn(
          { requestId: call.id, hop, worker: choice.worker.url, why: error.message },
          "hop failed, trying again",
        );
      } finally {
        choice.finish();
      }
      await (this.#options.pause ?? pause)(tries, call.signal);
    }
  }
}

/** When the last worker is gone, the failure that drove us from it says more than "nobody is there". */
function chooseOr<T>(last: HopFailure | undefined, choose: () => T): T {
  try {
    return choose();
  } catch (error) {
    throw last ?? error;
  }
}

/** Grows from try to try, with jitter: what one failure freed at once should not fall on the next worker at once. */
async function pause(tries: number, signal: AbortSignal): Promise<void> {
  const ms = Math.min(PAUSE_MS_MIN * 2 ** tries, PAUSE_MS_MAX) * (0.5 + Math.random());
  try {
    await sleep(ms, undefined, { signal });
  } catch {
    throw signal.reason;
  }
}
