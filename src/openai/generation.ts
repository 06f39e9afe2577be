import { KvError } from "../errors.ts";
import type { DisaggregatedParams } from "./disaggregated_params.ts";
import type { ChatCompletionRequest, ChatMessage, CompletionRequest } from "./requests.ts";

/** Where the prompt comes from; ids need no tokenizer. */
export type PromptSource =
  | { readonly from: "text"; readonly text: string }
  | { readonly from: "ids"; readonly ids: readonly number[] }
  | {
      readonly from: "messages";
      readonly messages: readonly ChatMessage[];
      readonly addGenerationPrompt: boolean;
      readonly specialsInContent: boolean;
      readonly templateValues: Readonly<Record<string, boolean | string | number>>;
    };

/** Sampling as both the engine and the wire need it, defaults filled in. */
export interface SamplingParams {
  /** 0 = greedy. */
  readonly temperature: number;
  readonly topP: number;
  /** 0 = off. */
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** 0 .. 2^64-1; absent: the worker draws one. */
  readonly seed: bigint | undefined;
  /** Alternatives wanted for each output token; -1 = no log probabilities at all. */
  readonly logprobs: number;
  readonly bias: readonly { readonly token: number; readonly bias: number }[];
}

/** One request of either route, defaults filled in and every refusal behind it. */
export interface GenerationParams {
  readonly kind: "completion" | "chat";
  readonly model: string | undefined;
  readonly prompt: PromptSource;
  /** Output tokens, token 0 of the hand-off included; undefined: to the end of the model's context. */
  readonly maxTokens: number | undefined;
  readonly minTokens: number;
  readonly sampling: SamplingParams;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly includeStop: boolean;
  readonly ignoreEos: boolean;
  readonly skipSpecialTokens: boolean;
  readonly addSpecialTokens: boolean;
  readonly echo: boolean;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly disaggregated: DisaggregatedParams | undefined;
}

/** The likeliest token stays whatever top_p is; engines want it above 0, as float32 too. */
const TOP_P_MIN = 1e-6;
const COMPLETION_MAX_TOKENS = 16;
const U64 = 1n << 64n;

type Shared = CompletionRequest | ChatCompletionRequest;

/**
 * @param vocabSize token ids at or above it are refused
 * @throws KvError INVALID_REQUEST, UNSUPPORTED_PARAMETER
 */
export function completionParams(request: CompletionRequest, vocabSize: number): GenerationParams {
  if (request.echo === true && typeof request.logprobs === "number") {
    throw new KvError("UNSUPPORTED_PARAMETER", {
      param: "echo",
      why: "together with logprobs it asks for log probabilities of the prompt, which the engine does not give",
    });
  }
  return {
    ...sharedParams(request, vocabSize, request.max_tokens ?? COMPLETION_MAX_TOKENS, request.logprobs ?? -1),
    kind: "completion",
    prompt: completionPrompt(request, vocabSize),
    addSpecialTokens: request.add_special_tokens ?? true,
    echo: request.echo ?? false,
  };
}

/**
 * @param vocabSize token ids at or above it are refused
 * @throws KvError INVALID_REQUEST, UNSUPPORTED_PARAMETER
 */
export function chatParams(request: ChatCompletionRequest, vocabSize: number): GenerationParams {
  const { max_tokens: older, max_completion_tokens: newer } = request;
  if (typeof older === "number" && typeof newer === "number" && older !== newer) {
    throw new KvError("INVALID_REQUEST", { param: "max_tokens", why: "it differs from max_completion_tokens" });
  }
  if (typeof request.top_logprobs === "number" && request.logprobs !== true) {
    throw new KvError("INVALID_REQUEST", { param: "top_logprobs", why: "it needs logprobs: true" });
  }
  const logprobs = request.logprobs === true ? (request.top_logprobs ?? 0) : -1;
  return {
    ...sharedParams(request, vocabSize, newer ?? older ?? undefined, logprobs),
    kind: "chat",
    prompt: chatPrompt(request, vocabSize),
    addSpecialTokens: request.add_special_tokens ?? false,
    echo: false,
  };
}

function sharedParams(request: Shared, vocabSize: number, maxTokens: number | undefined, logprobs: number) {
  const minTokens = request.min_tokens ?? 0;
  if (maxTokens !== undefined && minTokens > maxTokens) {
    throw new KvError("INVALID_REQUEST", {
      param: "min_tokens",
      why: `${minTokens} is more than max_tokens (${maxTokens})`,
    });
  }
  if (request.stream_options != null && request.stream !== true) {
    throw new KvError("INVALID_REQUEST", { param: "stream_options", why: "it needs stream: true" });
  }
  checkIds("stop_token_ids", request.stop_token_ids ?? [], vocabSize);
  const first = request.disaggregated_params?.first_gen_tokens ?? [];
  checkIds("disaggregated_params.first_gen_tokens", first, vocabSize);
  return {
    model: request.model ?? undefined,
    maxTokens,
    minTokens,
    sampling: {
      temperature: request.temperature ?? 1,
      topP: Math.max(request.top_p ?? 1, TOP_P_MIN),
      topK: Math.max(request.top_k ?? 0, 0),
      minP: request.min_p ?? 0,
      repetitionPenalty: request.repetition_penalty ?? 1,
      presencePenalty: request.presence_penalty ?? 0,
      frequencyPenalty: request.frequency_penalty ?? 0,
      seed: request.seed == null ? undefined : (BigInt(request.seed) + U64) % U64,
      logprobs,
      bias: biasEntries(request.logit_bias ?? {}, vocabSize),
    },
    stop: typeof request.stop === "string" ? [request.stop] : (request.stop ?? []),
    stopTokenIds: request.stop_token_ids ?? [],
    includeStop: request.include_stop_str_in_output ?? false,
    ignoreEos: request.ignore_eos ?? false,
    skipSpecialTokens: request.skip_special_tokens ?? true,
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
    disaggregated: request.disaggregated_params ?? undefined,
  };
}

function completionPrompt(request: CompletionRequest, vocabSize: number): PromptSource {
  const { prompt, prompt_token_ids: ids } = request;
  if (ids != null) return idsPrompt("prompt_token_ids", ids, vocabSize);
  if (prompt == null) throw new KvError("INVALID_REQUEST", { param: "prompt", why: "it is missing" });
  if (typeof prompt === "string") return { from: "text", text: prompt };
  const only: unknown = prompt[0];
  return typeof only === "string"
    ? { from: "text", text: only }
    : idsPrompt("prompt", prompt as readonly number[], vocabSize);
}

function chatPrompt(request: ChatCompletionRequest, vocabSize: number): PromptSource {
  if (request.prompt_token_ids != null) return idsPrompt("prompt_token_ids", request.prompt_token_ids, vocabSize);
  if (request.messages.length === 0) {
    throw new KvError("INVALID_REQUEST", { param: "messages", why: "there must be at least one message" });
  }
  return {
    from: "messages",
    messages: request.messages,
    addGenerationPrompt: request.add_generation_prompt ?? true,
    specialsInContent: request.special_tokens_in_content ?? false,
    templateValues: request.chat_template_kwargs ?? {},
  };
}

function idsPrompt(param: string, ids: readonly number[], vocabSize: number): PromptSource {
  if (ids.length === 0) throw new KvError("INVALID_REQUEST", { param, why: "it holds no token" });
  checkIds(param, ids, vocabSize);
  return { from: "ids", ids };
}

function checkIds(param: string, ids: readonly number[], vocabSize: number): void {
  const bad = ids.findIndex((id) => id >= vocabSize);
  if (bad === -1) return;
  throw new KvError("INVALID_REQUEST", {
    param,
    why: `token id ${ids[bad]} at index ${bad} is outside the model's vocabulary of ${vocabSize}`,
  });
}

function biasEntries(map: Readonly<Record<string, number>>, vocabSize: number) {
  const entries = Object.entries(map).map(([token, bias]) => ({ token: Number(token), bias }));
  checkIds(
    "logit_bias",
    entries.map(({ token }) => token),
    vocabSize,
  );
  return entries;
}
