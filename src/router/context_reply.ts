import { z } from "zod";
import { ContextReplyParams, type JsonObject, parseBody } from "../openai/index.ts";
import type { Answer } from "./exchange.ts";
import { type HopFailure, nonsense } from "./hop_failure.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

/** KV that waits at a context worker for a generation worker to fetch it. */
export interface Handoff {
  readonly worker: UpstreamWorker;
  readonly ctxRequestId: bigint;
  /** As the worker wrote it; nothing in it is read by the router beyond what is named here. */
  readonly params: JsonObject;
  readonly opaqueState: string | undefined;
  /** Undefined when the worker did not tell: then decode tokenises again. */
  readonly promptTokenIds: readonly number[] | undefined;
  readonly usage: unknown;
  /** The whole reply. */
  readonly reply: JsonObject;
  /** When a worker of ours lets go of it at the latest, on the router's clock. */
  readonly expiresMs: number | undefined;
  readonly offerMs: number | undefined;
}

export type ContextOutcome =
  | { readonly kind: "handoff"; readonly handoff: Handoff }
  /** The first token ended the answer: the reply is the answer, without what only routers may see. */
  | { readonly kind: "final"; readonly reply: JsonObject };

const Choice = z.looseObject({
  finish_reason: z.string().nullish(),
  disaggregated_params: ContextReplyParams.nullish(),
});
/** Long prompts have 10^5 ids and more: one pass over them, no object for each. */
const TokenIds = z.custom<readonly number[]>((value) => Array.isArray(value) && value.every(Number.isSafeInteger), {
  error: "must be a list of integers",
});
const Reply = z.looseObject({
  choices: z.array(Choice).length(1, { error: "a context reply has exactly one choice" }),
  prompt_token_ids: z.union([TokenIds, z.tuple([TokenIds])]).nullish(),
});

/** The sender's clock started when it answered, a little before the reply was here, and clocks differ (design.md I2). */
const OFFER_PART = 0.95;

/**
 * Judges the reply of a context worker (trtllm-protocol.md section 2.2, steps 4, 5, 7).
 * @throws HopFailure naming the worker and its text when a hand-off can't be made of it
 */
export function readContextReply(
  worker: UpstreamWorker,
  answer: Answer,
  sent: { readonly disaggRequestId: bigint | undefined; readonly nowMs: number },
): ContextOutcome {
  const fail = (why: string): HopFailure => nonsense("context", worker, answer, why);
  const { raw, reply } = parse(answer, fail);
  const choice = reply.choices[0];
  const params = choice?.disaggregated_params ?? undefined;
  const state = params?.encoded_opaque_state ?? undefined;
  if (!goesOn(worker, choice?.finish_reason ?? undefined)) return { kind: "final", reply: withoutRouterFields(raw) };
  if (params === undefined) throw fail("disaggregated_params is missing");
  if (params.ctx_request_id === undefined || params.ctx_request_id === null) throw fail("ctx_request_id is missing");
  if (sent.disaggRequestId !== undefined && (params.disagg_request_id ?? undefined) === undefined) {
    throw fail("disagg_request_id is missing");
  }
  if (worker.isKvt && state === undefined) throw fail("encoded_opaque_state is missing");
  const offerMs = worker.preparation?.info.offer_ms ?? undefined;
  return {
    kind: "handoff",
    handoff: {
      worker,
      ctxRequestId: params.ctx_request_id,
      params: rawParams(raw),
      opaqueState: state,
      promptTokenIds: flatIds(reply.prompt_token_ids),
      usage: raw.usage,
      reply: raw,
      expiresMs: offerMs === undefined ? undefined : sent.nowMs + offerMs * OFFER_PART,
      offerMs,
    },
  };
}

/** trtllm-serve says `length` after its one token; ours says so only when that token was all that was asked for. */
function goesOn(worker: UpstreamWorker, finishReason: string | undefined): boolean {
  return finishReason === "not_finished" || (finishReason === "length" && !worker.isKvt);
}

function parse(answer: Answer, fail: (why: string) => HopFailure) {
  let raw: JsonObject;
  try {
    raw = parseBody(answer.body);
  } catch (error) {
    throw fail(error instanceof Error ? error.message : String(error));
  }
  const reply = Reply.safeParse(raw);
  if (!reply.success) {
    const issue = reply.error.issues[0];
    throw fail(`${issue?.path.join(".") ?? ""}: ${issue?.message ?? "another shape than expected"}`);
  }
  return { raw, reply: reply.data };
}

const rawParams = (raw: JsonObject): JsonObject =>
  (raw.choices as { disaggregated_params: JsonObject }[])[0]?.disaggregated_params ?? {};

/** trtllm-serve gives completions a list with one list. */
function flatIds(ids: z.infer<typeof Reply>["prompt_token_ids"]): readonly number[] | undefined {
  const first = ids?.[0];
  return typeof first === "object" ? first : ((ids ?? undefined) as readonly number[] | undefined);
}

/** An answer as a client may see it (S121). */
export function withoutRouterFields(raw: JsonObject): JsonObject {
  const { prompt_token_ids: _ids, ...rest } = raw;
  if (!Array.isArray(rest.choices)) return rest;
  return {
    ...rest,
    choices: rest.choices.map((choice: unknown) => {
      if (typeof choice !== "object" || choice === null) return choice;
      const { disaggregated_params: _params, prompt_token_ids: _choiceIds, ...fields } = choice as JsonObject;
      return fields;
    }),
  };
}
