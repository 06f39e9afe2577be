import { KvError } from "../errors.ts";
import { type JsonObject, parseBody, parseRequest, RoutedRequest } from "../openai/index.ts";
import type { ClientAnswer } from "./client_answer.ts";

export type CallKind = "completion" | "chat";

export const callPaths = {
  completion: "/v1/completions",
  chat: "/v1/chat/completions",
} as const satisfies Record<CallKind, string>;

/** One client's request on its way through the router. */
export interface RoutedCall {
  /** `x-request-id` of the client, of both hops and of the answer (S122). */
  readonly id: string;
  readonly kind: CallKind;
  /** The client's body without the fields that only a router may send. */
  readonly body: JsonObject;
  /** What the router reads of it. */
  readonly request: RoutedRequest;
  /** Headers that both hops get. */
  readonly headers: Readonly<Record<string, string>>;
  readonly answer: ClientAnswer;
  /** Fires when nobody needs the answer any more or its time is over; the reason is the KvError to answer with. */
  readonly signal: AbortSignal;
  /** Whether another request in flight has the same id: then aborting by id would hit both. */
  readonly sharesId: () => boolean;
  readonly trace: CallTrace;
}

/** What the log line of a finished request tells. Times in ms on the router's clock. */
export interface CallTrace {
  readonly arrivedMs: number;
  dispatchedMs?: number;
  /** The client got the first byte of its stream. */
  firstByteMs?: number;
  /** The last hop's stream began: later than that when token 0 went ahead of it. */
  begunMs?: number;
  contextWorker?: string;
  generationWorker?: string;
  /** Under which the records of both workers are joined. */
  ctxRequestId?: bigint;
  contextTries: number;
  generationTries: number;
}

/**
 * Fields by which a router tells workers of some make where the KV lies. From a client they could name another one's KV, so they go
 * (design.md section 10); `prompt_token_ids` would let a chat bypass its template (S121).
 */
const routerFields: readonly string[] = ["disaggregated_params", "kv_transfer_params", "prompt_token_ids"];
const routerPrefix = "bootstrap_";

/** @throws KvError BAD_JSON, INVALID_REQUEST and the like: all of them 400 */
export function readClientBody(
  bytes: Uint8Array,
  rules: { readonly kind: CallKind; readonly allowChatTemplate: boolean },
): { readonly body: JsonObject; readonly request: RoutedRequest } {
  const body = parseBody(bytes);
  for (const key of Object.keys(body)) {
    if (routerFields.includes(key) || key.startsWith(routerPrefix)) delete body[key];
  }
  const request = parseRequest(RoutedRequest, body);
  if (rules.kind === "chat" && !Array.isArray(request.messages)) {
    throw new KvError("INVALID_REQUEST", { param: "messages", why: "it is missing" });
  }
  if (rules.kind === "completion" && (request.prompt === undefined || request.prompt === null)) {
    throw new KvError("INVALID_REQUEST", { param: "prompt", why: "it is missing" });
  }
  if (!rules.allowChatTemplate && (body.chat_template ?? null) !== null) {
    const why = "this router takes no templates from clients (allow_request_chat_template)";
    throw new KvError("UNSUPPORTED_PARAMETER", { param: "chat_template", why });
  }
  return { body, request };
}

/** Several answers to one prompt would need several hand-offs (S111). @throws KvError UNSUPPORTED_PARAMETER */
export function refuseSeveralAnswers(request: RoutedRequest): void {
  for (const param of ["n", "best_of"] as const) {
    if ((request[param] ?? 1) > 1) {
      const why = "more than one answer is not possible when prefill and decode run on different workers";
      throw new KvError("UNSUPPORTED_PARAMETER", { param, why });
    }
  }
}

/** Tokens asked for, by whichever of the two names. */
export const maxTokensOf = (request: RoutedRequest): number | undefined =>
  request.max_completion_tokens ?? request.max_tokens ?? undefined;
