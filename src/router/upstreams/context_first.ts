import { KvError } from "../../errors.ts";
import { type JsonObject, stringifyBody } from "../../openai/index.ts";
import { type ContextOutcome, type Handoff, readContextReply } from "../context_reply.ts";
import { EarlyToken } from "../early_token.ts";
import { finishWithFirstToken, finishWithLastAnswer, readLastAnswer } from "../finish_answer.ts";
import { GAVE_WAY_MAX, HopFailure, nonsense } from "../hop_failure.ts";
import { type RoutedCall, refuseSeveralAnswers } from "../routed_call.ts";
import type { UpstreamParts, UpstreamProtocol } from "../upstream.ts";
import type { UpstreamWorker } from "../upstream_worker.ts";

/** State of one call: workers that failed it, and the KV that waits for it. */
interface Progress {
  readonly call: RoutedCall;
  readonly contextTried: Set<UpstreamWorker>;
  readonly generationTried: Set<UpstreamWorker>;
  handoff: Handoff | undefined;
  readonly early: EarlyToken;
}

/**
 * The flow of trtllm-serve (trtllm-protocol.md section 2.2): the context worker computes the prompt and the first token and answers
 * with where the KV lies; the generation worker gets that, fetches the KV and goes on.
 */
export class ContextFirst implements UpstreamProtocol {
  readonly name = "trtllm-context-first";
  readonly #parts: UpstreamParts;

  constructor(parts: UpstreamParts) {
    this.#parts = parts;
  }

  async serve(call: RoutedCall): Promise<void> {
    refuseSeveralAnswers(call.request);
    const progress: Progress = {
      call,
      contextTried: new Set(),
      generationTried: new Set(),
      handoff: undefined,
      early: new EarlyToken(call),
    };
    try {
      for (let failures = 0, waits = 0; ; ) {
        try {
          await this.#generateSomewhere(progress);
          progress.handoff = undefined;
          return;
        } catch (error) {
          const isDead = error instanceof HopFailure && error.verdict === "prefill_again";
          if (!isDead || call.answer.started || call.signal.aborted) throw error;
          if (error.gaveWay ? ++waits > GAVE_WAY_MAX : ++failures > this.#parts.maxRetries) throw error;
          this.#dropHandoff(progress, error);
        }
      }
    } finally {
      this.#giveBack(progress);
    }
  }

  /** The generation worker is reserved before the prefill, so that computed KV finds a taker (S136). */
  #generateSomewhere(progress: Progress): Promise<void> {
    const { call } = progress;
    const model = call.request.model ?? undefined;
    const { fleet } = this.#parts;
    const peers = () => (progress.handoff === undefined ? fleet.able("context", model) : [progress.handoff.worker]);
    const wish = { model, tried: progress.generationTried, peers };
    return this.#parts.retries.run("generation", call, wish, async (worker, isRetry) => {
      if (isExpired(progress.handoff, this.#parts.clock.nowMs())) this.#giveBack(progress);
      if (progress.handoff === undefined) {
        const outcome = await this.#prefillSomewhere(progress, worker);
        if (outcome.kind === "final") {
          finishWithFirstToken(call, outcome.reply);
          return;
        }
        progress.handoff = outcome.handoff;
        call.trace.ctxRequestId = outcome.handoff.ctxRequestId;
        progress.early.show(worker, outcome.handoff, Date.now());
      }
      await this.#generate(progress, progress.handoff, worker, isRetry);
    });
  }

  #prefillSomewhere(progress: Progress, partner: UpstreamWorker): Promise<ContextOutcome> {
    const { call } = progress;
    const wish = {
      model: call.request.model ?? undefined,
      tried: progress.contextTried,
      partner,
      peers: () => [partner],
    };
    return this.#parts.retries.run("context", call, wish, (worker, isRetry) =>
      this.#prefill(progress, worker, isRetry),
    );
  }

  async #prefill({ call, early }: Progress, worker: UpstreamWorker, isRetry: boolean): Promise<ContextOutcome> {
    const { hops, ids, clock, abandon } = this.#parts;
    await abandon.aborted(worker, call.id);
    const disaggRequestId = ids !== null && this.#allKnowIds(worker) ? ids.next() : undefined;
    let wasSent = false;
    let isAnswered = false;
    try {
      const outcome = await hops.run("context", call, worker, {
        body: contextBody(call.body, disaggRequestId),
        read: (answer) => {
          const read = readContextReply(worker, answer, { disaggRequestId, nowMs: clock.nowMs() });
          if (read.kind === "handoff" || !early.isShown) return read;
          throw nonsense("context", worker, answer, "its first token is the last, the one that the client has is not");
        },
        isRetry,
        onSend: () => {
          wasSent = true;
        },
      });
      isAnswered = true;
      return outcome;
    } catch (error) {
      isAnswered ||= error instanceof HopFailure && error.words !== undefined;
      throw error;
    } finally {
      // No reply, or none that names its KV: the worker may hold some all the same.
      if (wasSent && !isAnswered && !call.sharesId()) abandon.request(worker, call.id);
    }
  }

  async #generate(progress: Progress, handoff: Handoff, worker: UpstreamWorker, isRetry: boolean): Promise<void> {
    const { call, early } = progress;
    const { hops, clock, abandon } = this.#parts;
    await abandon.aborted(worker, call.id);
    const stop = new AbortController();
    const body = await hops.run("generation", call, worker, {
      body: generationBody(call, { ...handoff, params: early.pinned(handoff.params) }, worker),
      read: (answer) => readLastAnswer("generation", worker, answer),
      isRetry,
      stop: stop.signal,
      onSend: () => {
        if (isExpired(handoff, clock.nowMs())) throw expiredFailure(handoff, worker);
      },
      ...(call.request.stream === true ? { target: early.target(worker, (failure) => stop.abort(failure)) } : {}),
    });
    finishWithLastAnswer(call, body);
  }

  /** The generation worker gets the id back out of the reply, so both sides have to know it. */
  #allKnowIds(context: UpstreamWorker): boolean {
    const knows = (worker: UpstreamWorker): boolean => worker.preparation?.knowsDisaggRequestId ?? true;
    return knows(context) && this.#parts.fleet.group("generation").every(knows);
  }

  /** After the generation worker could not fetch: another context worker is the better try, as this one may be the cause. */
  #dropHandoff(progress: Progress, { gaveWay }: HopFailure): void {
    if (progress.handoff !== undefined && !gaveWay) progress.contextTried.add(progress.handoff.worker);
    this.#giveBack(progress);
  }

  #giveBack(progress: Progress): void {
    if (progress.handoff !== undefined) this.#parts.abandon.handoff(progress.handoff, progress.call.id);
    progress.handoff = undefined;
  }
}

const isExpired = (handoff: Handoff | undefined, nowMs: number): boolean =>
  handoff?.expiresMs !== undefined && nowMs >= handoff.expiresMs;

function expiredFailure(handoff: Handoff, worker: UpstreamWorker): HopFailure {
  const details = { worker: handoff.worker.url, ms: handoff.offerMs ?? 0 };
  return new HopFailure({
    hop: "generation",
    worker,
    verdict: "prefill_again",
    error: new KvError("HANDOFF_EXPIRED", details),
  });
}

/**
 * The client's body as a context worker gets it: never a stream, one token, and the id both workers use.
 * @param more further `disaggregated_params`
 */
export function contextBody(body: JsonObject, disaggRequestId: bigint | undefined, more: JsonObject = {}): string {
  const { stream_options: _options, ...rest } = body;
  return stringifyBody({
    ...rest,
    stream: false,
    disaggregated_params: {
      request_type: "context_only",
      ...(disaggRequestId === undefined ? {} : { disagg_request_id: disaggRequestId }),
      ...more,
    },
  });
}

/** The client's body as a generation worker gets it: with the prompt's ids, so that it never tokenises, and where the KV lies. */
export function generationBody(
  call: Pick<RoutedCall, "body" | "kind">,
  handoff: Pick<Handoff, "params" | "promptTokenIds" | "usage">,
  worker: Pick<UpstreamWorker, "isKvt">,
): string {
  const { promptTokenIds: ids } = handoff;
  const prompt = ids === undefined ? {} : call.kind === "chat" ? { prompt_token_ids: ids } : { prompt: ids };
  return stringifyBody({
    ...call.body,
    ...prompt,
    disaggregated_params: {
      ...handoff.params,
      request_type: "generation_only",
      // Only the context worker knows how much of the prompt was cached (section 4.5).
      ...(worker.isKvt && handoff.usage ? { ctx_usage: handoff.usage } : {}),
    },
  });
}
