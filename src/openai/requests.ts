import { z } from "zod";
import { ignored, refused, supported } from "./fields.ts";
import { listOf } from "./lists.ts";
import { extraFields, samplingFields, tokenIds } from "./request_fields.ts";

const MAX_TOKENS_LIMIT = 1 << 30;
const maxTokens = z.int().min(1).max(MAX_TOKENS_LIMIT).nullish();
const MESSAGES_MAX = 4096;
const PARTS_MAX = 1024;

const isNone = (value: unknown): boolean => value === "none" || value === "auto";
const isEmptyList = (value: unknown): boolean => Array.isArray(value) && value.length === 0;
const isFalse = (value: unknown): boolean => value === false;
const isTextFormat = (value: unknown): boolean =>
  typeof value === "object" && value !== null && "type" in value && value.type === "text";

/** One string, a list of one string, or token ids; several prompts are refused (system.md S111). */
const prompt = z.union([z.string(), z.tuple([z.string()]), tokenIds], {
  error:
    "must be one string, a list of one string, or a flat list of token ids; several prompts in one request are not supported",
});

/** Body of POST /v1/completions. */
export const CompletionRequest = z.strictObject({
  model: samplingFields.model,
  prompt: supported(prompt.nullish(), "one string, a list of one string, or a flat list of token ids"),
  echo: supported(z.boolean().nullish(), "the prompt's text in front of the answer; not together with `logprobs`"),
  frequency_penalty: samplingFields.frequency_penalty,
  logit_bias: samplingFields.logit_bias,
  logprobs: supported(
    z.int().min(0).max(20).nullish(),
    "0 to 20 alternatives a token, from the distribution before temperature and filters",
  ),
  max_tokens: supported(maxTokens, "default 16"),
  n: samplingFields.n,
  presence_penalty: samplingFields.presence_penalty,
  seed: samplingFields.seed,
  stop: samplingFields.stop,
  stream: samplingFields.stream,
  stream_options: samplingFields.stream_options,
  suffix: refused("the model does not fill in the middle", (value) => value === ""),
  temperature: samplingFields.temperature,
  top_p: samplingFields.top_p,
  user: samplingFields.user,
  ...extraFields,
  response_format: refused("there is no constrained decoding", isTextFormat),
});
export type CompletionRequest = z.infer<typeof CompletionRequest>;

const textPart = z.strictObject(
  { type: z.literal("text"), text: z.string() },
  { error: "only content parts of type `text` are supported" },
);

const role = z.enum(["system", "developer", "user", "assistant"], {
  error: "must be system, developer, user or assistant (this worker does not parse or render tool calls)",
});

/** One message of a chat request. */
export const ChatMessage = z.strictObject({
  role: supported(role, "`developer` is read as `system`"),
  content: supported(
    z.union([z.string(), listOf(textPart, PARTS_MAX)], { error: "must be text, or a list of text parts" }).nullish(),
    "a string, or parts of type `text`, which are joined by line breaks",
  ),
  name: supported(z.string().max(256).nullish(), "handed to the template"),
  reasoning_content: supported(z.string().nullish(), "handed to the template"),
  // What clients send back of an answer they got.
  refusal: refused("the model has no such channel", (value) => value === ""),
  annotations: ignored("notes of the provider"),
  audio: refused("there is no audio"),
  tool_calls: refused("this worker does not parse or render tool calls", isEmptyList),
  function_call: refused("this worker does not parse or render tool calls"),
});
export type ChatMessage = z.infer<typeof ChatMessage>;

/** Body of POST /v1/chat/completions. */
export const ChatCompletionRequest = z.strictObject({
  messages: supported(
    listOf(ChatMessage, MESSAGES_MAX),
    "text content; control tokens written in it are text (see `special_tokens_in_content`)",
  ),
  model: samplingFields.model,
  audio: refused("there is no audio"),
  frequency_penalty: samplingFields.frequency_penalty,
  function_call: refused("this worker does not parse tool calls", isNone),
  functions: refused("this worker does not parse tool calls", isEmptyList),
  logit_bias: samplingFields.logit_bias,
  logprobs: supported(z.boolean().nullish(), "from the distribution before temperature and filters"),
  max_completion_tokens: supported(maxTokens, "default: to the end of the model's context"),
  max_tokens: supported(maxTokens, "older name of `max_completion_tokens`; both only when equal"),
  metadata: ignored("tags for the provider's store"),
  modalities: refused("answers are text", (value) => Array.isArray(value) && value.length === 1 && value[0] === "text"),
  moderation: refused("there is no moderation"),
  n: samplingFields.n,
  parallel_tool_calls: ignored("it has no meaning without tools"),
  prediction: ignored("a hint for speed that never changes an answer"),
  presence_penalty: samplingFields.presence_penalty,
  prompt_cache_key: ignored("a routing hint of the provider"),
  prompt_cache_options: ignored("hints for the provider's cache"),
  prompt_cache_retention: ignored("a hint for the provider's cache"),
  reasoning_effort: refused("the model does not reason in steps", (value) => value === "none"),
  response_format: refused("there is no constrained decoding", isTextFormat),
  safety_identifier: ignored("an identifier for the provider's statistics"),
  seed: samplingFields.seed,
  service_tier: ignored("there is one tier"),
  stop: samplingFields.stop,
  store: refused("answers are not stored", isFalse),
  stream: samplingFields.stream,
  stream_options: samplingFields.stream_options,
  temperature: samplingFields.temperature,
  tool_choice: refused("this worker does not parse tool calls", isNone),
  tools: refused("this worker does not parse tool calls", isEmptyList),
  top_logprobs: supported(z.int().min(0).max(20).nullish(), "0 to 20, needs `logprobs: true`"),
  top_p: samplingFields.top_p,
  user: samplingFields.user,
  verbosity: refused("the model has one", (value) => value === "medium"),
  web_search_options: refused("there is no web search"),
  ...extraFields,
  echo: refused("it belongs to /v1/completions", isFalse),
  add_generation_prompt: supported(z.boolean().nullish(), "default true"),
  special_tokens_in_content: supported(
    z.boolean().nullish(),
    "true: control tokens written in message text become tokens; default false, they are text",
  ),
  continue_final_message: refused("the template closes every message", isFalse),
  chat_template: refused("the model's own template is used"),
  chat_template_kwargs: supported(
    z.record(z.string().max(64), z.union([z.boolean(), z.string(), z.number()])).nullish(),
    "plain values handed to the template",
  ),
  documents: refused("put them into the messages", isEmptyList),
  mm_processor_kwargs: refused("there are no images"),
  include_reasoning: ignored("the model does not reason in steps"),
});
export type ChatCompletionRequest = z.infer<typeof ChatCompletionRequest>;

/**
 * What a router reads of a client's body (system.md S121); every other field passes through untouched, because the workers behind
 * it may be of another kind and know more than we do.
 */
export const RoutedRequest = z.looseObject({
  model: z.string().nullish(),
  prompt: prompt.nullish(),
  messages: z.array(z.unknown()).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  max_tokens: z.int().nullish(),
  max_completion_tokens: z.int().nullish(),
  n: z.int().nullish(),
  best_of: z.int().nullish(),
  prompt_token_ids: tokenIds.nullish(),
});
export type RoutedRequest = z.infer<typeof RoutedRequest>;
