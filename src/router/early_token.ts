import { z } from "zod";
import { type JsonObject, sseEvent } from "../openai/index.ts";
import type { Handoff } from "./context_reply.ts";
import type { AnswerHeaders, StreamTarget } from "./exchange.ts";
import { firstChunk } from "./finish_answer.ts";
import { type HopFailure, otherBeginning } from "./hop_failure.ts";
import type { RoutedCall } from "./routed_call.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

/** What `first_event` of /server_info says: the first event of a stream is its first token's, and no other's. */
const FIRST_TOKEN = "first_token";

/** What the client has of its answer, and whoever serves the request has to go on from. */
interface Shown {
  readonly text: string;
  /** `first_gen_tokens` and `first_gen_log_probs`, as the context worker wrote them. */
  readonly params: JsonObject;
}

/**
 * The client of a stream gets token 0 out of the context worker's reply, before any KV has moved (docs/decisions/046). The generation
 * worker's stream begins with the same token, so its first event is left out. Until that event comes nothing is decided: a try that fails is
 * repeated elsewhere, from the token that the client has.
 */
export class EarlyToken {
  readonly #call: RoutedCall;
  #shown: Shown | undefined;

  constructor(call: RoutedCall) {
    this.#call = call;
  }

  get isShown(): boolean {
    return this.#shown !== undefined;
  }

  /**
   * Does nothing where it can't be done.
   * @param createdMs when the generation worker got the request, or is about to: Unix ms
   */
  show(generation: UpstreamWorker, { worker, params, reply }: Handoff, createdMs: number): void {
    const { answer, signal } = this.#call;
    if (this.isShown || answer.started || signal.aborted || !worker.isKvt || !this.#isFit(generation)) return;
    const { first_gen_tokens: tokens, first_gen_log_probs: logprobs } = params;
    if (!Array.isArray(tokens) || tokens.length !== 1) return;
    const event = sseEvent(
      firstChunk(this.#call, reply, {
        created: Math.floor(createdMs / 1000),
        model: generation.preparation?.models[0]?.id,
      }),
    );
    this.#shown = {
      text: readEvent(event)?.text ?? "",
      params: { first_gen_tokens: tokens, ...(logprobs === undefined ? {} : { first_gen_log_probs: logprobs }) },
    };
    answer.preface(event);
  }

  /** A worker with more requests than its batch takes may refuse this one, and the client should get that as a status. */
  #isFit(generation: UpstreamWorker): boolean {
    const { request, body } = this.#call;
    const { first_event: firstEvent, max_batch_size: batch } = generation.preparation?.info ?? {};
    const isTold = firstEvent === FIRST_TOKEN && generation.inFlight <= (batch ?? 0);
    return isTold && request.stream === true && body.echo !== true;
  }

  /** The params of a hand-off with the token that the client has: the KV of a prompt fits every first token. */
  pinned(params: JsonObject): JsonObject {
    if (this.#shown === undefined) return params;
    const { first_gen_tokens: _token, first_gen_log_probs: _logprobs, ...rest } = params;
    return { ...rest, ...this.#shown.params };
  }

  /** Takes the stream of one try. @param onOther it does not begin with what the client has */
  target(generation: UpstreamWorker, onOther: (failure: HopFailure) => void): StreamTarget {
    return new RestOfStream(this.#call.answer, {
      shown: () => this.#shown?.text,
      onOther: (began) => onOther(otherBeginning(generation, began)),
    });
  }
}

interface RestOptions {
  /** Text of the first event when the client has it; asked when the stream begins. */
  readonly shown: () => string | undefined;
  readonly onOther: (began: string) => void;
}

const EVENT_END = "\n\n";
/** A token's event has some hundred bytes, with 20 log probabilities some thousand. */
const EVENT_BYTES_MAX = 64 * 1024;
const EXCERPT_CHARS = 300;

/** Passes a stream on, without its first event when the client has that. */
class RestOfStream implements StreamTarget {
  readonly #answer: StreamTarget;
  readonly #options: RestOptions;
  #headers: AnswerHeaders = {};
  #shown: string | undefined;
  /** The first event as far as it is here; null once it is dealt with. */
  #first: Buffer | null = null;

  constructor(answer: StreamTarget, options: RestOptions) {
    this.#answer = answer;
    this.#options = options;
  }

  begin(headers: AnswerHeaders): void {
    this.#headers = headers;
    this.#shown = this.#options.shown();
    if (this.#shown === undefined) this.#answer.begin(headers);
    else this.#first = Buffer.alloc(0);
  }

  write(piece: Buffer): boolean {
    if (this.#first === null) return this.#answer.write(piece);
    this.#first = Buffer.concat([this.#first, piece]);
    const end = this.#first.indexOf(EVENT_END);
    if (end === -1 && this.#first.length <= EVENT_BYTES_MAX) return true;
    const rest = this.#first.subarray(end + EVENT_END.length);
    const event = this.#first.toString("utf8", 0, end + EVENT_END.length);
    const read = readEvent(event);
    if (end === -1 || read === undefined || read.text !== this.#shown) {
      this.#options.onOther(event.slice(0, EXCERPT_CHARS));
      return true;
    }
    this.#first = null;
    this.#answer.begin(this.#headers);
    const what = Buffer.concat([Buffer.from(read.ending), rest]);
    return what.length === 0 || this.#answer.write(what);
  }

  whenWritable(resume: () => void): void {
    this.#answer.whenWritable(resume);
  }
}

const Chunk = z.looseObject({
  choices: z.tuple([
    z.looseObject({
      text: z.string().optional(),
      delta: z.looseObject({ content: z.string().optional() }).optional(),
      finish_reason: z.string().nullish(),
    }),
  ]),
});

/** Text of a stream's event. `ending`: the event without its text when it ends the answer, else empty. Undefined: it is no chunk. */
function readEvent(event: string): { readonly text: string; readonly ending: string } | undefined {
  const data = dataOf(event);
  if (!Chunk.safeParse(data).success) return undefined;
  // What zod gives has its fields in another order.
  const chunk = data as z.infer<typeof Chunk>;
  const [choice] = chunk.choices;
  const text = choice.text ?? choice.delta?.content ?? "";
  if ((choice.finish_reason ?? null) === null) return { text, ending: "" };
  const empty = choice.delta === undefined ? { text: "" } : { delta: {} };
  return { text, ending: sseEvent({ ...chunk, choices: [{ ...choice, ...empty, logprobs: null }] }) };
}

function dataOf(event: string): unknown {
  try {
    return JSON.parse(event.startsWith(DATA) ? event.slice(DATA.length) : "null");
  } catch {
    return null;
  }
}

const DATA = "data: ";
