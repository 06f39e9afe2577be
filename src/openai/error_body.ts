import { z } from "zod";
import { KvError } from "../errors.ts";
import { stringifyBody } from "./body.ts";
import { requestError } from "./validate.ts";

/** Error of either route as a client sees it (system.md S126); `code` is the KvError's code in lower case. */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly code: string;
    readonly param: string | null;
    readonly request_id: string;
    /** Which leg failed; absent when no worker was involved. */
    readonly hop?: Hop;
    readonly worker?: string;
  };
}

export type Hop = "context" | "generation";

export interface ErrorPlace {
  readonly requestId: string;
  readonly hop?: Hop;
  readonly worker?: string;
}

export interface ErrorAnswer {
  readonly status: number;
  readonly body: ErrorBody;
  /** `x-request-id`, and `retry-after` (s) with 429 and 503. */
  readonly headers: Readonly<Record<string, string>>;
}

const MESSAGE_CHARS_MAX = 2048;
const RETRY_AFTER_S = 1;

const types: Readonly<Record<number, string>> = {
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  429: "rate_limit_error",
  499: "request_cancelled",
};

/**
 * The answer for anything that was thrown: a KvError speaks for itself, zod's findings become 400, an HTTP framework's own 4xx keep
 * their status, everything else is our defect and tells no details.
 */
export function errorBody(error: unknown, place: ErrorPlace): ErrorAnswer {
  const { status, code, message, param, retryAfterS } = describe(error);
  const body: ErrorBody = {
    error: {
      message: message.slice(0, MESSAGE_CHARS_MAX),
      type: types[status] ?? (status < 500 ? "invalid_request_error" : "server_error"),
      code,
      param,
      request_id: place.requestId,
      ...(place.hop === undefined ? {} : { hop: place.hop }),
      ...(place.worker === undefined ? {} : { worker: place.worker }),
    },
  };
  const headers: Record<string, string> = { "x-request-id": place.requestId };
  if (status === 429 || status === 503) headers["retry-after"] = String(retryAfterS);
  return { status, body, headers };
}

/** The one event that ends a stream after its first byte; no `[DONE]` follows. */
export const errorEvent = (error: unknown, place: ErrorPlace): string =>
  `data: ${stringifyBody({ ...errorBody(error, place).body })}\n\n`;

interface Described {
  readonly status: number;
  readonly code: string;
  readonly message: string;
  readonly param: string | null;
  readonly retryAfterS: number;
}

function describe(error: unknown): Described {
  if (error instanceof KvError) return describeKvError(error);
  if (error instanceof z.ZodError) return describeKvError(requestError(error));
  const client = frameworkError(error);
  if (client !== undefined) return client;
  return {
    status: 500,
    code: "internal",
    message: "internal defect; the worker's log has the details under this request id",
    param: null,
    retryAfterS: RETRY_AFTER_S,
  };
}

function describeKvError(error: KvError): Described {
  const { param, retryAfterMs, retryAfterS } = error.details;
  const waitS = retryAfterS ?? Math.ceil(Number(retryAfterMs ?? RETRY_AFTER_S * 1000) / 1000);
  return {
    status: error.status,
    code: error.code.toLowerCase(),
    message: `${error.message}; ${error.remedy}`,
    param: typeof param === "string" ? param : null,
    retryAfterS: Math.max(1, Number(waitS)),
  };
}

/** Fastify and undici mark a client's fault with a 4xx `statusCode`. */
function frameworkError(error: unknown): Described | undefined {
  if (!(error instanceof Error) || !("statusCode" in error)) return undefined;
  const status = error.statusCode;
  if (typeof status !== "number" || status < 400 || status > 499) return undefined;
  const code = "code" in error && typeof error.code === "string" ? error.code.toLowerCase() : "bad_request";
  return { status, code, message: error.message, param: null, retryAfterS: RETRY_AFTER_S };
}
