import type { Clock } from "../clock.ts";
import type { Abandon } from "./abandon.ts";
import type { Fleet } from "./fleet.ts";
import type { HopRetries } from "./hop_retries.ts";
import type { HopRunner } from "./hop_runner.ts";
import type { RequestIds } from "./request_ids.ts";
import type { RoutedCall } from "./routed_call.ts";

/** How one kind of worker, or pair of workers, is driven to answer a request. One object a router, many calls at once. */
export interface UpstreamProtocol {
  readonly name: string;
  /**
   * Answers the call completely: resolves after the last byte was written to `call.answer`. When it rejects, nobody is working on the
   * call any more, and what workers held for it was given back or is on its way to be.
   * @throws HopFailure when workers failed it, KvError for every other cause, the reason of `call.signal` when that fired; the answer
   * may have been started (then the stream has to be ended with an error) or not (then a status can be sent)
   */
  serve(call: RoutedCall): Promise<void>;
}

/** What the protocols are made of. */
export interface UpstreamParts {
  readonly clock: Clock;
  readonly fleet: Fleet;
  readonly retries: HopRetries;
  readonly hops: HopRunner;
  readonly abandon: Abandon;
  /** Null: the workers' own ids are used. */
  readonly ids: Pick<RequestIds, "next"> | null;
  readonly maxRetries: number;
}
