import type { DisaggregatedParams } from "./disaggregated_params.ts";
import type { ChatLogprobs, CompletionLogprobs } from "./logprobs.ts";

/** `not_finished`: a context reply whose answer goes on at a generation worker. */
export type FinishReason = "stop" | "length" | "not_finished";

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

export const usage = (promptTokens: number, completionTokens: number, cachedTokens: number): Usage => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: promptTokens + completionTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens },
});

/** What all bodies of one answer share. */
export interface AnswerHead {
  /** `cmpl-...` or `chatcmpl-...`, see `answerId`. */
  readonly id: string;
  /** Unix seconds. */
  readonly created: number;
  readonly model: string;
}

export const answerId = (kind: "completion" | "chat", requestId: string): string =>
  `${kind === "chat" ? "chatcmpl" : "cmpl"}-${requestId}`;

/** How an answer ended. */
export interface Ending {
  readonly finishReason: FinishReason;
  /** The stop string, or the id of `stop_token_ids`, that ended it; null for the model's own end token. */
  readonly stopReason: string | number | null;
}

/** Only for a caller that sent `disaggregated_params`, that is for a router (system.md S121). */
export interface ContextReply {
  readonly params: DisaggregatedParams;
  /** Not in generation-first: the generation worker has read the prompt by itself. */
  readonly promptTokenIds?: readonly number[];
}

interface WholeAnswer {
  readonly text: string;
  readonly ending: Ending;
  readonly usage: Usage;
  readonly context?: ContextReply;
}

/** What ends each choice of a whole answer. */
interface WholeEnding extends EndingFields<FinishReason> {
  readonly disaggregated_params?: DisaggregatedParams;
}

/** What follows the choices of a whole answer. */
interface WholeFields {
  readonly usage: Usage;
  readonly prompt_token_ids?: readonly number[];
}

interface EndingFields<Reason> {
  readonly finish_reason: Reason;
  readonly stop_reason: string | number | null;
}

const wholeEnding = ({ ending, context }: WholeAnswer): WholeEnding => ({
  finish_reason: ending.finishReason,
  stop_reason: ending.stopReason,
  ...(context === undefined ? {} : { disaggregated_params: context.params }),
});

const wholeFields = ({ usage, context }: WholeAnswer): WholeFields => ({
  usage,
  ...(context?.promptTokenIds === undefined ? {} : { prompt_token_ids: context.promptTokenIds }),
});

export type CompletionResponse = AnswerHead & {
  readonly object: "text_completion";
  readonly choices: readonly ({
    readonly index: 0;
    readonly text: string;
    readonly logprobs: CompletionLogprobs | null;
  } & WholeEnding)[];
} & WholeFields;

export function completionResponse(
  head: AnswerHead,
  answer: WholeAnswer & { readonly logprobs?: CompletionLogprobs },
): CompletionResponse {
  return {
    ...head,
    object: "text_completion",
    choices: [
      {
        index: 0,
        text: answer.text,
        logprobs: answer.logprobs ?? null,
        ...wholeEnding(answer),
      },
    ],
    ...wholeFields(answer),
  };
}

export type ChatCompletionResponse = AnswerHead & {
  readonly object: "chat.completion";
  readonly choices: readonly ({
    readonly index: 0;
    readonly message: { readonly role: "assistant"; readonly content: string; readonly refusal: null };
    readonly logprobs: ChatLogprobs | null;
  } & WholeEnding)[];
} & WholeFields;

export function chatResponse(
  head: AnswerHead,
  answer: WholeAnswer & { readonly logprobs?: ChatLogprobs },
): ChatCompletionResponse {
  return {
    ...head,
    object: "chat.completion",
    choices: [
      {
        index: 0,
        message: { role: "assistant", content: answer.text, refusal: null },
        logprobs: answer.logprobs ?? null,
        ...wholeEnding(answer),
      },
    ],
    ...wholeFields(answer),
  };
}

/** One event's worth of an answer. */
export interface Delta<Logprobs> {
  readonly text: string;
  readonly logprobs?: Logprobs;
  readonly ending?: Ending;
}

const chunkEnding = ({ ending }: Delta<unknown>): EndingFields<FinishReason | null> => ({
  finish_reason: ending?.finishReason ?? null,
  stop_reason: ending?.stopReason ?? null,
});

/** The one with the figures follows the last chunk. */
const chunkUsage = (includeUsage: boolean): { readonly usage?: null } => (includeUsage ? { usage: null } : {});

export interface CompletionChunk extends AnswerHead {
  readonly object: "text_completion";
  readonly choices: readonly ({
    readonly index: 0;
    readonly text: string;
    readonly logprobs: CompletionLogprobs | null;
  } & EndingFields<FinishReason | null>)[];
  /** With `include_usage`: null in all chunks but the last. */
  readonly usage?: Usage | null;
}

export function completionChunk(
  head: AnswerHead,
  delta: Delta<CompletionLogprobs>,
  includeUsage: boolean,
): CompletionChunk {
  return {
    ...head,
    object: "text_completion",
    choices: [
      {
        index: 0,
        text: delta.text,
        logprobs: delta.logprobs ?? null,
        ...chunkEnding(delta),
      },
    ],
    ...chunkUsage(includeUsage),
  };
}

export interface ChatChunk extends AnswerHead {
  readonly object: "chat.completion.chunk";
  readonly choices: readonly ({
    readonly index: 0;
    readonly delta: { readonly role?: "assistant"; readonly content?: string };
    readonly logprobs: ChatLogprobs | null;
  } & EndingFields<FinishReason | null>)[];
  readonly usage?: Usage | null;
}

/** @param first adds the role, as the first chunk of a chat answer has it */
export function chatChunk(
  head: AnswerHead,
  delta: Delta<ChatLogprobs>,
  options: { readonly includeUsage: boolean; readonly first: boolean },
): ChatChunk {
  return {
    ...head,
    object: "chat.completion.chunk",
    choices: [
      {
        index: 0,
        delta: {
          ...(options.first ? { role: "assistant" as const } : {}),
          ...(delta.text !== "" || options.first ? { content: delta.text } : {}),
        },
        logprobs: delta.logprobs ?? null,
        ...chunkEnding(delta),
      },
    ],
    ...chunkUsage(options.includeUsage),
  };
}

/** The chunk after the last token that `stream_options.include_usage` asks for: no choices. */
export function usageChunk(kind: "completion" | "chat", head: AnswerHead, total: Usage): CompletionChunk | ChatChunk {
  return kind === "chat"
    ? { ...head, object: "chat.completion.chunk", choices: [], usage: total }
    : { ...head, object: "text_completion", choices: [], usage: total };
}
