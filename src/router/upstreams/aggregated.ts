import { stringifyBody } from "../../openai/index.ts";
import type { Answer } from "../exchange.ts";
import { finishWithLastAnswer, readLastAnswer } from "../finish_answer.ts";
import type { RoutedCall } from "../routed_call.ts";
import type { UpstreamParts, UpstreamProtocol } from "../upstream.ts";
import type { UpstreamWorker } from "../upstream_worker.ts";

/** Prefill and decode on one worker, without a hand-off: for a router that has workers of one role only, or one for both roles. */
export class Aggregated implements UpstreamProtocol {
  readonly name = "aggregated";
  readonly #parts: UpstreamParts;

  constructor(parts: UpstreamParts) {
    this.#parts = parts;
  }

  serve(call: RoutedCall): Promise<void> {
    const { retries, hops, fleet } = this.#parts;
    const role = fleet.group("generation").length > 0 ? "generation" : "context";
    const wish = { model: call.request.model ?? undefined, tried: new Set<UpstreamWorker>() };
    const body = stringifyBody(call.body);
    return retries.run(role, call, wish, async (worker, isRetry) => {
      const target = call.request.stream === true ? { target: call.answer } : {};
      const read = (answer: Answer) => readLastAnswer(role, worker, answer);
      finishWithLastAnswer(call, await hops.run(role, call, worker, { body, read, isRetry, ...target }));
    });
  }
}
