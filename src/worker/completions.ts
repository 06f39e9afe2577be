import type { FastifyReply, FastifyRequest } from "fastify";
import { KvError } from "../errors.ts";
import { requestIdToBigInt } from "../ids.ts";
import {
  type AnswerHead,
  answerId,
  ChatCompletionRequest,
  CompletionRequest,
  type ContextReply,
  chatChunk,
  chatLogprobs,
  chatParams,
  chatResponse,
  completionChunk,
  completionLogprobs,
  completionParams,
  completionResponse,
  type Ending,
  errorBody,
  errorEvent,
  type GenerationParams,
  type JsonObject,
  parseBody,
  parseRequest,
  sseEvent,
  stringifyBody,
  type Usage,
  usage,
  usageChunk,
} from "../openai/index.ts";
import { Answer, type AnswerPiece } from "./answer.ts";
import type { ContextIds } from "./context_ids.ts";
import { EventStream } from "./event_stream.ts";
import type { PerfEntry } from "./perf_metrics.ts";
import type { RequestRecord } from "./records.ts";
import type { RequestOutcome, RequestSpec } from "./request.ts";
import { requestSpec } from "./request_spec.ts";
import type { Scheduler } from "./scheduler.ts";
import { type PromptReader, readPrompt } from "./text/index.ts";

export interface CompletionsOptions {
  readonly scheduler: Scheduler;
  readonly reader: PromptReader;
  readonly contextIds: ContextIds;
  /** Names this worker answers to; the first is the one in answers. */
  readonly modelNames: readonly [string, ...string[]];
  /** Other names are 404; otherwise answered, with one warning. */
  readonly strictModel: boolean;
  readonly maxSeqLen: number;
  /** A client that reads nothing of its stream for this long is cut off. */
  readonly stallMs: number;
  readonly onUnknownModel: (model: string) => void;
  readonly onAnswered: (record: RequestRecord) => void;
  /** It was answered well. */
  readonly onServed: (entry: PerfEntry) => void;
}

type Kind = GenerationParams["kind"];

/** One request on its way, as far as it is known. */
interface Call {
  readonly kind: Kind;
  readonly id: string;
  readonly arrivedMs: number;
  /** The same on the steady clock. */
  readonly serverArrivalMs: number;
  readonly reply: FastifyReply;
  /** Fires when the client has gone. */
  readonly gone: AbortSignal;
  /**
   * Rejects when the client has gone. One that left before its request was read has been served before the loop sees the end of its
   * connection: the answer would count as sent, and what it offers be known to nobody.
   */
  confirm(): Promise<void>;
  params?: GenerationParams;
  spec?: RequestSpec;
  outcome?: RequestOutcome;
  /** What ended a stream after its first byte. */
  failure?: unknown;
}

/** POST /v1/completions and /v1/chat/completions, aggregated and as either half of a disaggregated request. */
export class Completions {
  readonly #options: CompletionsOptions;
  readonly #strangers = new Set<string>();
  #running = 0;
  #settledWaiters: (() => void)[] = [];

  constructor(options: CompletionsOptions) {
    this.#options = options;
  }

  /** Resolves when every request that came in has its answer handed to the connection. */
  async settled(): Promise<void> {
    if (this.#running > 0) await new Promise<void>((resolve) => this.#settledWaiters.push(resolve));
  }

  async serve(kind: Kind, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    this.#running++;
    reply.raw.once("close", () => {
      this.#running--;
      if (this.#running === 0) for (const resolve of this.#settledWaiters.splice(0)) resolve();
    });
    const gone = new AbortController();
    // Socket close, not a poll (trtllm-protocol.md section 5.7).
    const onClose = (): void => {
      if (reply.raw.writableFinished) return;
      gone.abort(new KvError("CANCELLED", { transfer: request.id, why: "the client closed the connection" }));
    };
    reply.raw.on("close", onClose);
    const call: Call = {
      kind,
      id: request.id,
      arrivedMs: Date.now(),
      serverArrivalMs: performance.now(),
      reply,
      gone: gone.signal,
      confirm: async () => {
        // The end of this turn of the loop, then a whole one, in which every socket is looked at.
        for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
        if (request.raw.socket.readableEnded) onClose();
        gone.signal.throwIfAborted();
      },
    };
    try {
      await this.#serve(call, request.body);
      const { failure } = call;
      const status = failure === undefined ? 200 : errorBody(failure, { requestId: call.id }).status;
      this.#options.onAnswered(recordOf(call, status, failure));
      return reply;
    } catch (error) {
      this.#options.onAnswered(recordOf(call, errorBody(error, { requestId: call.id }).status, error));
      throw error;
    }
  }

  async #serve(call: Call, body: unknown): Promise<void> {
    const { reader, scheduler, contextIds, maxSeqLen } = this.#options;
    const params = this.#params(call.kind, body);
    call.params = params;
    this.#checkModel(params.model);
    const prompt = await readPrompt(params, reader, call.gone);
    const pieces: AnswerPiece[] = [];
    const head: AnswerHead = {
      id: answerId(call.kind, call.id),
      created: Math.floor(call.arrivedMs / 1000),
      model: this.#options.modelNames[0],
    };
    const stream = params.stream ? new ChunkWriter(call, params, head, this.#options) : null;
    const onPiece = (piece: AnswerPiece): void => {
      if (stream === null) pieces.push(piece);
      else stream.piece(piece, prompt);
    };
    const answer = new Answer(params, reader.tokenizer, onPiece);
    const { eosIds } = reader.tokenizer;
    const spec = requestSpec(params, { id: call.id, prompt, eosIds, maxSeqLen, contextIds, onToken: answer.onToken });
    call.spec = spec;
    const request = scheduler.submit(spec);
    const leave = (): void => {
      scheduler.abort(request, "the client closed the connection");
    };
    if (call.gone.aborted) leave();
    // Not removed at the end: a context reply that does not reach its reader leaves an offer that nobody knows.
    call.gone.addEventListener("abort", leave, { once: true });
    try {
      const outcome = await request.done;
      if (outcome.offer !== null) await call.confirm();
      call.outcome = outcome;
      const total = usage(prompt.length, outcome.outputTokens, cachedTokens(params, outcome));
      if (stream !== null) stream.end(total);
      else this.#sendWhole(call, { head, params, prompt, spec, outcome, pieces, total });
      const { id: requestId, serverArrivalMs } = call;
      const serverFirstTokenMs = stream?.firstByteMs ?? performance.now();
      this.#options.onServed({ requestId, spec, outcome, serverArrivalMs, serverFirstTokenMs });
    } catch (error) {
      if (stream === null || !stream.started) throw error;
      call.failure = error;
      stream.fail(error);
    }
  }

  #params(kind: Kind, body: unknown): GenerationParams {
    const { vocabSize } = this.#options.reader.tokenizer;
    const parsed = parseBody(body instanceof Uint8Array ? body : "");
    return kind === "chat"
      ? chatParams(parseRequest(ChatCompletionRequest, parsed), vocabSize)
      : completionParams(parseRequest(CompletionRequest, parsed), vocabSize);
  }

  #checkModel(model: string | undefined): void {
    const { modelNames, strictModel, onUnknownModel } = this.#options;
    if (model === undefined || modelNames.includes(model)) return;
    const shown = model.slice(0, 128);
    if (strictModel) throw new KvError("MODEL_NOT_FOUND", { model: shown, served: modelNames[0] });
    if (this.#strangers.has(shown) || this.#strangers.size >= STRANGERS_MAX) return;
    this.#strangers.add(shown);
    onUnknownModel(shown);
  }

  #sendWhole(call: Call, answer: WholeAnswer): void {
    const { head, params, prompt, pieces, total } = answer;
    const { tokenizer } = this.#options.reader;
    const context = contextReply(answer);
    const goesOn = answer.outcome.offer !== null;
    const echo = params.echo && !goesOn ? echoOf(params, prompt, tokenizer) : "";
    const tokens = pieces.flatMap(({ logprobs }) => logprobs);
    const whole = {
      text: echo + pieces.map(({ text }) => text).join(""),
      ending: goesOn ? NOT_FINISHED : endingOf(answer.outcome),
      usage: total,
      ...(context === null ? {} : { context }),
    };
    const withLogprobs = params.sampling.logprobs >= 0;
    const body =
      call.kind === "chat"
        ? chatResponse(head, {
            ...whole,
            ...(withLogprobs ? { logprobs: chatLogprobs(tokens, params.sampling.logprobs) } : {}),
          })
        : completionResponse(head, {
            ...whole,
            ...(withLogprobs ? { logprobs: completionLogprobs(tokens, params.sampling.logprobs, echo.length) } : {}),
          });
    call.reply.type("application/json; charset=utf-8").send(stringifyBody(body as unknown as JsonObject));
  }
}

const STRANGERS_MAX = 64;
const NOT_FINISHED: Ending = { finishReason: "not_finished", stopReason: null };

interface WholeAnswer {
  readonly head: AnswerHead;
  readonly params: GenerationParams;
  readonly prompt: Uint32Array;
  readonly spec: RequestSpec;
  readonly outcome: RequestOutcome;
  readonly pieces: readonly AnswerPiece[];
  readonly total: Usage;
}

/** Only a caller that sent `disaggregated_params` gets any back (system.md S121). */
function contextReply({ spec, params, outcome, prompt }: WholeAnswer): ContextReply | null {
  const { role } = spec;
  if (role.kind !== "context") return null;
  const first = outcome.firstToken;
  const asked = params.disaggregated?.disagg_request_id;
  return {
    // Nobody needs them when the generation worker has the prompt already, and the router would read them while token 0 passes.
    // Spread: a third of the time of Array.from where neither is compiled yet.
    ...(role.generationFirst ? {} : { promptTokenIds: [...prompt] }),
    params: {
      request_type: "context_only",
      first_gen_tokens: first === null ? [] : [first.token],
      ...(first?.logprobs === undefined ? {} : { first_gen_log_probs: [firstLogprobs(first.logprobs)] }),
      ctx_request_id: requestIdToBigInt(role.contextId),
      ...(asked == null ? {} : { disagg_request_id: asked }),
      ...(outcome.offer === null ? {} : { encoded_opaque_state: outcome.offer.state }),
    },
  };
}

type FirstLogprobs = { logprob: number; top: { token: number; logprob: number }[] };

const firstLogprobs = (logprobs: { logprob: number; top: readonly { token: number; logprob: number }[] }) =>
  ({ logprob: logprobs.logprob, top: [...logprobs.top] }) satisfies FirstLogprobs;

const endingOf = ({ finish }: RequestOutcome): Ending => ({ finishReason: finish.reason, stopReason: finish.stop });

/** The context worker's figure where the router passed it on: here the prompt came as KV (trtllm-protocol.md section 4.5). */
const cachedTokens = (params: GenerationParams, outcome: RequestOutcome): number =>
  params.disaggregated?.ctx_usage?.prompt_tokens_details?.cached_tokens ?? outcome.cachedTokens;

/** From the ids, so that both halves of a disaggregated request show the same; a bos that we added is not the client's text. */
function echoOf(params: GenerationParams, prompt: Uint32Array, tokenizer: PromptReader["tokenizer"]): string {
  const hasBos = params.addSpecialTokens && tokenizer.vocabulary.addBos && prompt[0] === tokenizer.bosId;
  return tokenizer.decode(Array.from(prompt.subarray(hasBos ? 1 : 0)));
}

/** Writes the pieces of one answer as chunks. */
class ChunkWriter {
  readonly #call: Call;
  readonly #params: GenerationParams;
  readonly #head: AnswerHead;
  readonly #options: CompletionsOptions;
  readonly #events: EventStream;
  #echoUnits = 0;
  #isFirst = true;

  constructor(call: Call, params: GenerationParams, head: AnswerHead, options: CompletionsOptions) {
    this.#call = call;
    this.#params = params;
    this.#head = head;
    this.#options = options;
    this.#events = new EventStream(call.reply.raw, { requestId: call.id, stallMs: options.stallMs });
  }

  get started(): boolean {
    return this.#events.started;
  }

  get firstByteMs(): number | null {
    return this.#events.firstByteMs;
  }

  piece(piece: AnswerPiece, prompt: Uint32Array): void {
    const { echo, includeUsage, sampling } = this.#params;
    let { text } = piece;
    if (this.#isFirst) {
      this.#call.reply.hijack();
      const front = echo ? echoOf(this.#params, prompt, this.#options.reader.tokenizer) : "";
      this.#echoUnits = front.length;
      text = front + text;
    }
    if (!this.#isFirst && text === "" && piece.logprobs.length === 0 && piece.ending === null) return;
    const ending = piece.ending === null ? {} : { ending: piece.ending };
    const tokens = piece.logprobs;
    const shows = tokens.length > 0;
    const chunk =
      this.#call.kind === "chat"
        ? chatChunk(
            this.#head,
            { text, ...(shows ? { logprobs: chatLogprobs(tokens, sampling.logprobs) } : {}), ...ending },
            { includeUsage, first: this.#isFirst },
          )
        : completionChunk(
            this.#head,
            {
              text,
              ...(shows
                ? { logprobs: completionLogprobs(tokens, sampling.logprobs, this.#echoUnits + piece.offset) }
                : {}),
              ...ending,
            },
            includeUsage,
          );
    this.#isFirst = false;
    this.#events.send(sseEvent(chunk));
  }

  end(total: Usage): void {
    if (this.#params.includeUsage) this.#events.send(sseEvent(usageChunk(this.#call.kind, this.#head, total)));
    this.#events.done();
  }

  fail(error: unknown): void {
    this.#events.fail(errorEvent(error, { requestId: this.#call.id }));
  }
}

function recordOf(call: Call, status: number, error?: unknown): RequestRecord {
  const timings = call.outcome?.timings;
  const role = call.spec?.role.kind ?? "aggregated";
  return {
    event: "request",
    request_id: call.id,
    role,
    status,
    arrived_ms: call.arrivedMs,
    queue_ms: timings?.queueMs ?? 0,
    prefill_ms: timings?.prefillMs ?? 0,
    transfer_ms: timings?.transferMs ?? 0,
    decode_ms: timings?.decodeMs ?? 0,
    prompt_tokens: call.spec?.prompt.length ?? 0,
    cached_tokens: call.outcome?.cachedTokens ?? 0,
    output_tokens: call.outcome?.outputTokens ?? 0,
    ...(error === undefined ? {} : { error: error instanceof Error ? error.message : String(error) }),
  };
}
