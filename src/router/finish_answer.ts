import {
  type ChatLogprobs,
  type CompletionLogprobs,
  chatChunk,
  completionChunk,
  type FinishReason,
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
import type { RoutedCall } from "./routed_call.ts";

const JSON_TYPE = { "content-type": "application/json; charset=utf-8" } as const;

/** Only a worker that was asked by a router adds these, and most answers hold neither: a search is cheaper than a parse. */
const routerMarks: readonly string[] = ['"disaggregated_params"', '"prompt_token_ids"'];

/** Ends a call with the answer of its last hop: a stream was relayed on the way, anything else is sent now. */
export function finishWithAnswer(call: RoutedCall, answer: Answer): void {
  if (answer.streamed) {
    call.answer.end();
    return;
  }
  const { body, headers } = answer;
  const type = headers["content-type"];
  const hasMarks = routerMarks.some((mark) => body.includes(mark));
  const clean = hasMarks ? stringifyBody(withoutRouterFields(parseBody(body))) : body;
  call.answer.send(200, typeof type === "string" ? { "content-type": type } : JSON_TYPE, clean);
}

/** Ends a call whose first token was its last: a whole answer, or the stream that a generation worker would have sent. */
export function finishWithFirstToken(call: RoutedCall, reply: JsonObject): void {
  if (call.request.stream !== true) {
    call.answer.send(200, JSON_TYPE, stringifyBody(reply));
    return;
  }
  call.answer.sendEvents(firstTokenEvents(call, reply));
}

interface ReplyChoice {
  readonly text?: unknown;
  readonly message?: { readonly content?: unknown };
  readonly logprobs?: unknown;
  readonly finish_reason?: unknown;
  readonly stop_reason?: unknown;
}

/** One chunk with the text, one with the end, the usage if it was asked for, `[DONE]` (trtllm-protocol.md section 2.2 step 5). */
export function firstTokenEvents(call: Pick<RoutedCall, "kind" | "request" | "id">, reply: JsonObject): string[] {
  const choice = ((reply.choices as readonly ReplyChoice[] | undefined) ?? [])[0] ?? {};
  const head = {
    id: String(reply.id ?? call.id),
    created: Number(reply.created ?? 0),
    model: String(reply.model ?? call.request.model ?? ""),
  };
  const includeUsage = call.request.stream_options?.include_usage === true;
  const ending = {
    finishReason: choice.finish_reason as FinishReason,
    stopReason: (choice.stop_reason ?? null) as string | number | null,
  };
  const chunks =
    call.kind === "chat"
      ? [
          chatChunk(
            head,
            { text: String(choice.message?.content ?? ""), ...logprobsOf<ChatLogprobs>(choice) },
            { includeUsage, first: true },
          ),
          chatChunk(head, { text: "", ending }, { includeUsage, first: false }),
        ]
      : [
          completionChunk(
            head,
            { text: String(choice.text ?? ""), ...logprobsOf<CompletionLogprobs>(choice) },
            includeUsage,
          ),
          completionChunk(head, { text: "", ending }, includeUsage),
        ];
  const usage = includeUsage && reply.usage ? [usageChunk(call.kind, head, reply.usage as Usage)] : [];
  return [...[...chunks, ...usage].map(sseEvent), SSE_DONE];
}

const logprobsOf = <Logprobs>(choice: ReplyChoice): { logprobs?: Logprobs } =>
  choice.logprobs ? { logprobs: choice.logprobs as Logprobs } : {};
