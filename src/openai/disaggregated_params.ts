import { z } from "zod";
import { listOf } from "./lists.ts";

/** An exact integer from `min` to 2^64 - 1: `parseBody` makes bigint of those that a number can't carry. */
export const isInteger64 = (value: unknown, min: bigint): boolean =>
  (typeof value === "bigint" || Number.isSafeInteger(value)) &&
  (value as number | bigint) >= min &&
  (value as bigint) < 1n << 64n;

/** A 64-bit id: a bare JSON integer, bigint in TypeScript. */
export const Id64 = z
  .custom<number | bigint>((value) => isInteger64(value, 0n), "must be an integer in 0 .. 2^64-1")
  .transform((value) => BigInt(value));

const tokenId = z.int().nonnegative();

/** Log probabilities of one token that the context worker sampled, so that the generation worker can report them. */
export const FirstTokenLogProbs = z.strictObject({
  logprob: z.number(),
  top: listOf(z.strictObject({ token: tokenId, logprob: z.number() }), 21),
});
export type FirstTokenLogProbs = z.infer<typeof FirstTokenLogProbs>;

export const RequestType = z.enum(["context_only", "generation_only", "context_and_generation"]);
export type RequestType = z.infer<typeof RequestType>;

const fields = {
  request_type: RequestType,
  first_gen_tokens: listOf(tokenId, 64).nullish(),
  /** One entry for each of `first_gen_tokens`. */
  first_gen_log_probs: listOf(FirstTokenLogProbs, 64).nullish(),
  first_gen_logits: z.null().optional(),
  ctx_request_id: Id64.nullish(),
  encoded_opaque_state: z
    .string()
    .max(1 << 20)
    .nullish(),
  draft_tokens: listOf(tokenId, 0).nullish(),
  disagg_request_id: Id64.nullish(),
  ctx_dp_rank: z.int().nonnegative().nullish(),
  ctx_info_endpoint: z.union([z.string(), listOf(z.string(), 64)]).nullish(),
  schedule_style: z.union([z.literal(0), z.literal(1)]).nullish(),
  conversation_id: z.string().max(512).nullish(),
  /** Usage of the context hop; the generation worker takes `cached_tokens` from it. */
  ctx_usage: z.looseObject({ prompt_tokens_details: z.looseObject({ cached_tokens: z.int() }).nullish() }).nullish(),
  return_prompt_token_ids_b64: z.literal(false).nullish(),
  resolved_thinking: z.boolean().nullish(),
};

/**
 * `disaggregated_params` of a request to a worker (trtllm-protocol.md section 1.4). Fields it does not know are refused, as
 * trtllm-serve does: a hint that silently does nothing would cost a wrong answer.
 */
export const DisaggregatedParams = z.strictObject(fields);
export type DisaggregatedParams = z.infer<typeof DisaggregatedParams>;

/**
 * The same object as a router reads it in a context reply: what it needs is checked, everything else is passed on as it came
 * (`{ ...params, request_type: "generation_only" }`).
 */
export const ContextReplyParams = z.looseObject({
  ctx_request_id: Id64.nullish(),
  disagg_request_id: Id64.nullish(),
  encoded_opaque_state: z.string().nullish(),
  first_gen_tokens: z.array(z.int()).nullish(),
});
export type ContextReplyParams = z.infer<typeof ContextReplyParams>;
