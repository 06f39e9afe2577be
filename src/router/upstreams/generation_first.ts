import { type JsonObject, stringifyBody } from "../../openai/index.ts";
import { type ContextOutcome, readContextReply } from "../context_reply.ts";
import { EarlyToken } from "../early_token.ts";
import { finishWithLastAnswer, readLastAnswer } from "../finish_answer.ts";
import { GAVE_WAY_MAX, HopFailure } from "../hop_failure.ts";
import type { RequestIds } from "../request_ids.ts";
import { type RoutedCall, refuseSeveralAnswers } from "../routed_call.ts";
import type { UpstreamParts, UpstreamProtocol } from "../upstream.ts";
import type { UpstreamWorker } from "../upstream_worker.ts";
import { contextBody } from "./context_first.ts";

/** State of one call: workers that failed it. */
interface Progress {
  readonly call: RoutedCall;
  readonly contextTried: Set<UpstreamWorker>;
  readonly generationTried: Set<UpstreamWorker>;
  readonly early: EarlyToken;
}

/** The two workers of one try. */
interface Pair {
  readonly context: UpstreamWorker;
  readonly generation: UpstreamWorker;
  /** Fresh for each try: under it the workers find each other. */
  readonly id: bigint;
  readonly isRetry: boolean;
}

/**
 * Prefill and decode start together (trtllm-protocol.md section 2.3): the generation worker asks the context worker for KV that does not
 * exist yet, gets it while it is computed, and gets token 0 with the last of it. So nothing lies between the two hops, and a try is a try
 * of both: when one worker fails, the other one is let go.
 */
export class GenerationFirst implements UpstreamProtocol {
  readonly name = "trtllm-generation-first";
  readonly #parts: UpstreamParts & { readonly ids: Pick<RequestIds, "next"> };

  constructor(parts: UpstreamParts & { readonly ids: Pick<RequestIds, "next"> }) {
    this.#parts = parts;
  }

  async serve(call: RoutedCall): Promise<void> {
    refuseSeveralAnswers(call.request);
    const early = new EarlyToken(call);
    const progress: Progress = { call, contextTried: new Set(), generationTried: new Set(), early };
    for (let failures = 0, waits = 0; ; ) {
      try {
        await this.#serveSomewhere(progress, failures + waits > 0);
        return;
      } catch (error) {
        const isDead = error instanceof HopFailure && error.verdict === "prefill_again";
        if (!isDead || call.answer.started || call.signal.aborted) throw error;
        if (error.gaveWay ? ++waits > GAVE_WAY_MAX : ++failures > this.#parts.maxRetries) throw error;
      }
    }
  }

  /** The generation worker is reserved first, as in the other flow (S136). */
  #serveSomewhere({ call, contextTried, generationTried, early }: Progress, isAgain: boolean): Promise<void> {
    const { retries, ids, fleet } = this.#parts;
    const model = call.request.model ?? undefined;
    const peers = () => fleet.able("context", model);
    return retries.run("generation", call, { model, tried: generationTried, peers }, (generation, isOther) =>
      retries.run(
        "context",
        call,
        { model, tried: contextTried, partner: generation, peers: () => [generation] },
        async (context, isAnother) => {
          try {
            const isRetry = isAgain || isOther || isAnother;
            await this.#try(call, { context, generation, id: ids.next(), isRetry }, early);
          } catch (error) {
            // It could not fetch: another context worker is the better try, as this one may be the cause.
            if (error instanceof HopFailure && error.verdict === "prefill_again" && !error.gaveWay)
              contextTried.add(context);
            throw error;
          }
        },
      ),
    );
  }

  async #try(call: RoutedCall, pair: Pair, early: EarlyToken): Promise<void> {
    const { abandon } = this.#parts;
    call.trace.ctxRequestId = pair.id;
    await Promise.all([abandon.aborted(pair.context, call.id), abandon.aborted(pair.generation, call.id)]);
    const stop = new AbortController();
    // Prefill takes longest, and begins at once where blocks are plentiful, else when the generation worker has asked for it.
    const prefill = this.#prefill(call, pair, stop.signal);
    const sentMs = Date.now();
    const decode = this.#decode(call, pair, stop, early);
    // Whoever fails first ends the other; a stream that runs has its KV and needs the context worker no more.
    prefill.then(
      (outcome) => {
        if (outcome.kind === "handoff") early.show(pair.generation, outcome.handoff, sentMs);
      },
      (error: unknown) => {
        if (!call.answer.started) stop.abort(error);
      },
    );
    decode.catch((error: unknown) => stop.abort(error));
    const [decoded] = await Promise.allSettled([decode]);
    if (decoded.status === "fulfilled") {
      // Its reply says nothing new; cut off, it would only look like a failure.
      const limit = setTimeout(() => stop.abort(new Error("nobody needs its reply")), LATE_REPLY_MS);
      prefill.finally(() => clearTimeout(limit)).catch(() => {});
      return;
    }
    const [prefilled] = await Promise.allSettled([prefill]);
    if (prefilled.status === "fulfilled") this.#letGo(call, pair, prefilled.value);
    throw causeOf(decoded.reason, prefilled.status === "rejected" ? prefilled.reason : undefined);
  }

  async #prefill(call: RoutedCall, { context, id, isRetry }: Pair, stop: AbortSignal): Promise<ContextOutcome> {
    const { hops, clock, abandon } = this.#parts;
    let wasSent = false;
    try {
      return await hops.run("context", call, context, {
        body: contextBody(call.body, id, { schedule_style: GENERATION_FIRST }),
        read: (answer) => readContextReply(context, answer, { disaggRequestId: id, nowMs: clock.nowMs() }),
        isRetry,
        stop,
        onSend: () => {
          wasSent = true;
        },
      });
    } catch (error) {
      // The other hop's failure comes here too, as the reason of `stop`.
      const isRefusal = error instanceof HopFailure && error.hop === "context" && error.words !== undefined;
      if (wasSent && !isRefusal && !call.sharesId()) abandon.request(context, call.id);
      throw error;
    }
  }

  async #decode(
    call: RoutedCall,
    { context, generation, id, isRetry }: Pair,
    stop: AbortController,
    early: EarlyToken,
  ): Promise<void> {
    const body = await this.#parts.hops.run("generation", call, generation, {
      body: decodeBody(call.body, id, context.preparation?.info.disaggregated_params ?? {}),
      read: (answer) => readLastAnswer("generation", generation, answer),
      isRetry,
      stop: stop.signal,
      ...(call.request.stream === true ? { target: early.target(generation, (failure) => stop.abort(failure)) } : {}),
    });
    finishWithLastAnswer(call, body);
  }

  /** The context worker has answered, and nobody will fetch what it holds. */
  #letGo(call: RoutedCall, { context }: Pair, outcome: ContextOutcome): void {
    const { abandon } = this.#parts;
    if (outcome.kind === "handoff") abandon.handoff(outcome.handoff, call.id);
    else if (!call.sharesId()) abandon.request(context, call.id);
  }
}

/** After the generation worker's whole answer. */
const LATE_REPLY_MS = 5_000;

/** `schedule_style` in `disaggregated_params`. */
const GENERATION_FIRST = 1;

/** A generation worker that lost its sender says less than the context worker's own failure. */
function causeOf(decoded: unknown, prefilled: unknown): unknown {
  const isEcho = decoded instanceof HopFailure && decoded.hop === "generation" && decoded.verdict === "prefill_again";
  return isEcho && prefilled instanceof HopFailure && prefilled.hop === "context" ? prefilled : decoded;
}

/** The client's body as a generation worker gets it: it tokenises by itself, and asks the context worker at the endpoint given. */
export function decodeBody(body: JsonObject, id: bigint, contextInfo: JsonObject): string {
  return stringifyBody({
    ...body,
    disaggregated_params: {
      request_type: "generation_only",
      ctx_request_id: id,
      disagg_request_id: id,
      schedule_style: GENERATION_FIRST,
      ...contextInfo,
    },
  });
}
