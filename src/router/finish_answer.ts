import {
  type AnswerHead,
  type ChatLogprobs,
  type CompletionLogprobs,
  chatChunk,
  completionChunk,
  type FinishReason,
  type Hop,
  type JsonObject,
  parseBody,
  SSE_DONE,
  sseEvent,
  stringifyBody,
  type Usage,
  usageChunk,
} from "../openai/index.ts";
import { withoutRouterFields } from "./context_reply.ts";
import type { Answer } from "./exchange.ts";
import { nonsense } from "./hop_failure.ts";
import type { RoutedCall } from "./routed_call.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

const JSON_TYPE = { "content-type": "application/json; charset=utf-8" } as const;

/** Only a worker that was asked by a router adds these, and most answers hold neither. */
const routerMarks: readonly string[] = ['"disaggregated_params"', '"prompt_token_ids"'];

/**
 * The answer of a call's last hop as the client may see it; undefined when it was streamed.
 * @throws HopFailure when a worker's 200 holds no answer, so that another one can be asked
 */
export function readLastAnswer(hop: Hop, worker: UpstreamWorker, answer: Answer): string | Buffer | undefined {
  if (answer.streamed) return undefined;
  const { body } = answer;
  let reply: JsonObject;
  try {
    reply = parseBody(body);
    if (!Array.isArray(reply.choices)) throw new TypeError("it has no choices");
  } catch (error) {
    throw nonsense(hop, worker, answer, error instanceof Error ? error.message : String(error));
  }
  const hasMarks = routerMarks.some((mark) => body.includes(mark));
  return hasMarks ? stringifyBody(withoutRouterFields(reply)) : body;
}

/** Ends a call with what `readLastAnswer` made of its last hop. */
export function finishWithLastAnswer(call: RoutedCall, body: string | Buffer | undefined): void {
  if (body === undefined) call.answer.end();
  else call.answer.send(200, JSON_TYPE, body);
}

/** Ends a call whose first token was its last: a whole answer, or the stream that a generation worker would have sent. */
export function finishWithFirstToken(call: RoutedCall, reply: JsonObject): void {
  if (call.request.stream !== true) {
    call.answer.send(200, JSON_TYPE, stringifyBody(reply));
    return;
  }
  call.answer.sendEvents(firstTokenEvents(call, reply));
}

type StreamedCall = Pick<RoutedCall, "kind" | "request" | "id">;

interface ReplyChoice {
  readonly text?: unknown;
  readonly message?: { readonly content?: unknown };
  readonly logprobs?: unknown;
  readonly finish_reason?: unknown;
  readonly stop_reason?: unknown;
}

/** One chunk with the text, one with the end, the usage if it was asked for, `[DONE]` (trtllm-protocol.md section 2.2 step 5). */
export function firstTokenEvents(call: StreamedCall, reply: JsonObject): string[] {
  const choice = choiceOf(reply);
  const head = headOf(call, reply);
  const includeUsage = wantsUsage(call);
  const ending = {
    finishReason: choice.finish_reason as FinishReason,
    stopReason: (choice.stop_reason ?? null) as string | number | null,
  };
  const end =
    call.kind === "chat"
      ? chatChunk(head, { text: "", ending }, { includeUsage, first: false })
      : completionChunk(head, { text: "", ending }, includeUsage);
  const usage = includeUsage && reply.usage ? [usageChunk(call.kind, head, reply.usage as Usage)] : [];
  return [...[firstChunk(call, reply), end, ...usage].map(sseEvent), SSE_DONE];
}

/**
 * The chunk of a stream's first token, made of a context worker's reply.
 * @param worker what the worker that goes on says of itself in its chunks
 */
export function firstChunk(
  call: StreamedCall,
  reply: JsonObject,
  worker: { readonly created?: number; readonly model?: string | undefined } = {},
) {
  const choice = choiceOf(reply);
  const { id, created, model } = headOf(call, reply);
  const head = { id, created: worker.created ?? created, model: worker.model ?? model };
  const includeUsage = wantsUsage(call);
  if (call.kind === "chat") {
    const delta = { text: String(choice.message?.content ?? ""), ...logprobsOf<ChatLogprobs>(choice) };
    return chatChunk(head, delta, { includeUsage, first: true });
  }
  const delta = { text: String(choice.text ?? ""), ...logprobsOf<CompletionLogprobs>(choice) };
  return completionChunk(head, delta, includeUsage);
}

const choiceOf = (reply: JsonObject): ReplyChoice =>
  ((reply.choices as readonly ReplyChoice[] | undefined) ?? [])[0] ?? {};

const headOf = (call: StreamedCall, reply: JsonObject): AnswerHead => ({
  id: String(reply.id ?? call.id),
  created: Number(reply.created ?? 0),
  model: String(reply.model ?? call.request.model ?? ""),
});

const wantsUsage = ({ request }: StreamedCall): boolean => request.stream_options?.include_usage === true;

const logprobsOf = <Logprobs>(choice: ReplyChoice): { logprobs?: Logprobs } =>
  choice.logprobs ? { logprobs: choice.logprobs as Logprobs } : {};
