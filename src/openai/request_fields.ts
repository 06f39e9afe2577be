import { z } from "zod";
import { DisaggregatedParams, isInteger64 } from "./disaggregated_params.ts";
import { ignored, refused, supported } from "./fields.ts";
import { listOf } from "./lists.ts";

/** Token ids of a prompt. A plain loop: a prompt of millions of ids must not cost a schema call each. */
export const tokenIds = z.custom<readonly number[]>(isTokenIds, "must be a list of token ids (integers from 0)");

function isTokenIds(value: unknown): boolean {
  if (!Array.isArray(value)) return false;
  for (const id of value) {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > 0xffffffff) return false;
  }
  return true;
}

const STOP_STRINGS_MAX = 16;
const STOP_STRING_CHARS_MAX = 1024;
const stopString = z
  .string()
  .min(1)
  .max(STOP_STRING_CHARS_MAX)
  .refine((text) => !/\p{Cs}/u.test(text));

const seed = z
  .custom<number | bigint>((value) => isInteger64(value, -(1n << 63n)), "must be a 64-bit integer")
  .nullish();

const isOne = (value: unknown): boolean => value === 1;
const isFalse = (value: unknown): boolean => value === false;
const isEmptyList = (value: unknown): boolean => Array.isArray(value) && value.length === 0;

const streamOptions = z
  .strictObject({
    include_usage: z.boolean().nullish(),
    include_obfuscation: z.boolean().nullish(),
    continuous_usage_stats: z.literal(false, "is not supported").nullish(),
  })
  .nullish();

/** Fields that both routes share: the OpenAI standard's first, then those that vLLM and trtllm-serve add. */
export const samplingFields = {
  model: supported(z.string().max(1024).nullish(), "the served name; absent means the only model here"),
  frequency_penalty: supported(z.number().min(-2).max(2).nullish(), "-2 to 2, counts output tokens"),
  presence_penalty: supported(z.number().min(-2).max(2).nullish(), "-2 to 2, counts output tokens"),
  logit_bias: supported(
    z.record(z.string().regex(/^\d{1,10}$/, "keys are token ids"), z.number().min(-100).max(100)).nullish(),
    "token id to bias, -100 to 100, 1024 entries at most",
  ),
  n: refused("one request gives one answer; send it several times", isOne),
  seed: supported(seed, "64-bit; the same seed gives the same text, also when prefill and decode run on two workers"),
  stop: supported(
    z
      .union([stopString, listOf(stopString, STOP_STRINGS_MAX)], {
        error: `must be one string or up to ${STOP_STRINGS_MAX}, each of 1 to ${STOP_STRING_CHARS_MAX} characters of well-formed Unicode`,
      })
      .nullish(),
    `one string or up to ${STOP_STRINGS_MAX}, found across token borders too; not part of the answer`,
  ),
  stream: supported(z.boolean().nullish(), "server-sent events"),
  stream_options: supported(streamOptions, "`include_usage`; `include_obfuscation` is accepted and adds nothing"),
  temperature: supported(z.number().min(0).max(2).nullish(), "0 is greedy; default 1"),
  top_p: supported(z.number().min(0).max(1).nullish(), "default 1; 0 keeps the likeliest token only"),
  user: ignored("an identifier for the provider's statistics"),
} as const;

export const extraFields = {
  prompt_token_ids: supported(tokenIds.nullish(), "the prompt as token ids; on chat it replaces the rendered messages"),
  disaggregated_params: supported(
    DisaggregatedParams.nullish(),
    "set by a router (trtllm-protocol); a router strips what a client sends",
  ),
  top_k: supported(
    z
      .int()
      .min(-1)
      .max(1 << 20)
      .nullish(),
    "0 or -1 turns it off (default)",
  ),
  min_p: supported(z.number().min(0).max(1).nullish(), "default 0"),
  repetition_penalty: supported(z.number().min(0.01).max(10).nullish(), "1 turns it off (default)"),
  min_tokens: supported(
    z
      .int()
      .min(0)
      .max(1 << 24)
      .nullish(),
    "no end token before that many output tokens",
  ),
  ignore_eos: supported(z.boolean().nullish(), "go on to max_tokens whatever the model says"),
  stop_token_ids: supported(listOf(z.int().nonnegative(), 64).nullish(), "further ids that end the answer"),
  include_stop_str_in_output: supported(z.boolean().nullish(), "keep the stop string at the end of the text"),
  skip_special_tokens: supported(z.boolean().nullish(), "default true: special tokens give no text"),
  add_special_tokens: supported(
    z.boolean().nullish(),
    "put the model's bos in front of the prompt where the model asks for it; default true on completions, false on chat, whose template does it",
  ),
  spaces_between_special_tokens: ignored("nothing is put between special tokens"),
  detokenize: refused("answers are text", (value) => value === true),
  logprobs_mode: refused("log probabilities are those of the model's own distribution"),
  prompt_logprobs: refused("the engine gives log probabilities of output tokens only"),
  allowed_token_ids: refused("the engine has no list of allowed tokens; use logit_bias"),
  bad_words: refused("use logit_bias", isEmptyList),
  bad: refused("use logit_bias", isEmptyList),
  truncate_prompt_tokens: refused("prompts are not cut in silence"),
  use_beam_search: refused("beam width is 1", isFalse),
  best_of: refused("one request gives one answer", isOne),
  length_penalty: refused("it belongs to beam search", isOne),
  early_stopping: refused("it belongs to beam search", isFalse),
  return_context_logits: refused("logits are not returned", isFalse),
  return_generation_logits: refused("logits are not returned", isFalse),
  return_token_ids: refused("token ids are not returned", isFalse),
  return_perf_metrics: ignored("times are in /metrics and in the log"),
  lora_request: refused("there are no adapters"),
  guided_json: refused("there is no constrained decoding"),
  guided_regex: refused("there is no constrained decoding"),
  guided_choice: refused("there is no constrained decoding"),
  guided_grammar: refused("there is no constrained decoding"),
  structured_outputs: refused("there is no constrained decoding"),
  priority: refused("requests are served in the order of arrival", (value) => value === 0),
  cache_salt: refused("the prefix cache is not divided"),
  kv_transfer_params: refused("this worker speaks disaggregated_params"),
  conversation_params: ignored("read by routers"),
} as const;
