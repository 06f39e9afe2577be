import { createHash } from "node:crypto";
import { KvError } from "../errors.ts";
import { requestId } from "../ids.ts";
import type { DisaggregatedParams, GenerationParams } from "../openai/index.ts";
import { parseInfoEndpoint } from "../transceiver/info_endpoint.ts";
import type { ContextIds } from "./context_ids.ts";
import type { Sample } from "./engine.ts";
import type { RequestRole, RequestSpec, TokenListener } from "./request.ts";

export interface SpecSources {
  /** `x-request-id`. */
  readonly id: string;
  readonly prompt: Uint32Array;
  readonly eosIds: readonly number[];
  readonly maxSeqLen: number;
  readonly contextIds: ContextIds;
  readonly onToken: TokenListener;
}

/**
 * What the scheduler shall do for one request.
 * @throws KvError INVALID_REQUEST when `disaggregated_params` do not fit together
 */
export function requestSpec(params: GenerationParams, sources: SpecSources): RequestSpec {
  const { id, prompt, eosIds, maxSeqLen, onToken } = sources;
  const stopTokens = new Map<number, number | null>(params.stopTokenIds.map((token) => [token, token]));
  if (!params.ignoreEos) for (const token of eosIds) stopTokens.set(token, null);
  const { seed, ...sampling } = params.sampling;
  return {
    id,
    prompt,
    role: roleOf(params, sources.contextIds),
    maxTokens: params.maxTokens ?? Math.max(1, maxSeqLen - prompt.length),
    minTokens: params.minTokens,
    sampling: { ...sampling, seed: seed ?? seedOf(id) },
    stopTokens,
    onToken,
  };
}

/** See docs/decisions/012-seed-from-request-id.md: both hops carry the same id. */
export const seedOf = (id: string): bigint => createHash("sha256").update(`kvt seed ${id}`).digest().readBigUInt64LE(0);

function roleOf(params: GenerationParams, contextIds: ContextIds): RequestRole {
  const wanted = params.disaggregated;
  switch (wanted?.request_type) {
    case undefined:
    case "context_and_generation":
      return { kind: "aggregated" };
    case "context_only": {
      if (params.stream) throw refusal("stream", "a context_only request is answered whole");
      const given = wanted.disagg_request_id;
      if (wanted.schedule_style !== GENERATION_FIRST) {
        return { kind: "context", contextId: given == null ? contextIds.next() : requestId(given) };
      }
      if (given == null) throw refusal("disaggregated_params.disagg_request_id", NO_COMMON_ID);
      return { kind: "context", contextId: requestId(given), generationFirst: true };
    }
    case "generation_only":
      return generationRole(wanted);
  }
}

/** `schedule_style`: both workers were asked at once. */
const GENERATION_FIRST = 1;
const NO_COMMON_ID = "it is missing: with schedule_style 1 the two workers find each other by it";

function generationRole(wanted: DisaggregatedParams): RequestRole {
  if (wanted.schedule_style === GENERATION_FIRST && wanted.encoded_opaque_state == null) return earlyRole(wanted);
  const [token, ...more] = wanted.first_gen_tokens ?? [];
  if (token === undefined || more.length > 0) {
    throw refusal("disaggregated_params.first_gen_tokens", "a generation_only request needs exactly one first token");
  }
  const logprobs = wanted.first_gen_log_probs?.[0];
  const firstToken: Sample = logprobs === undefined ? { token } : { token, logprobs };
  return {
    kind: "generation",
    state: wanted.encoded_opaque_state ?? "",
    contextId: wanted.ctx_request_id == null ? null : requestId(wanted.ctx_request_id),
    firstToken,
  };
}

/** @throws KvError BAD_STATE when the endpoint is none of ours */
function earlyRole(wanted: DisaggregatedParams): RequestRole {
  const id = wanted.disagg_request_id ?? wanted.ctx_request_id;
  if (id == null) throw refusal("disaggregated_params.disagg_request_id", NO_COMMON_ID);
  const endpoints = [wanted.ctx_info_endpoint ?? []].flat();
  const [first] = endpoints;
  if (first === undefined) {
    throw refusal("disaggregated_params.ctx_info_endpoint", "it is missing: schedule_style 1 brings no state");
  }
  return {
    kind: "generation",
    peer: { instance: parseInfoEndpoint(first).target.name, endpoints },
    contextId: requestId(id),
  };
}

const refusal = (param: string, why: string): KvError => new KvError("INVALID_REQUEST", { param, why });
