import type { ErrorSpec } from "./spec.ts";

/** What the router answers when workers fail it or are missing. */
export const routerErrors = {
  // --- router -----------------------------------------------------------------------------------------------------------
  CLUSTER_NOT_READY: {
    scope: "instance",
    status: 503,
    message: "the cluster is not ready: {why}",
    remedy: "retry later; GET /cluster_info shows the state of each worker",
  },
  NO_COMPATIBLE_PAIR: {
    scope: "instance",
    status: 503,
    message: "no {role} worker keeps its KV in a layout that the other side can use: {pairs}",
    remedy: "give both sides the same model and KV dtype; GET /cluster_info lists the pairs that don't fit",
  },
  TOO_MANY_REQUESTS: {
    scope: "instance",
    status: 429,
    message: "{what} in flight, the limit is {limit}",
    remedy: "retry later, or add another router",
  },
  REQUEST_TIMEOUT: {
    scope: "call",
    status: 504,
    message: "no byte of the answer came within {ms} ms (--request_timeout)",
    remedy: "raise --request_timeout, or look for the slow worker in GET /cluster_info",
  },
  UNSUPPORTED_MEDIA_TYPE: {
    scope: "call",
    status: 415,
    message: "the body is of type {type}",
    remedy: "send JSON with Content-Type application/json",
  },
  BODY_TIMEOUT: {
    scope: "call",
    status: 408,
    message: "the body of the request did not arrive in time",
    remedy: "send the whole request at once",
  },
  CLIENT_GONE: {
    scope: "call",
    status: 499,
    message: "the client left before the answer was complete: {why}",
    remedy: "none: nobody waits for the answer",
  },
  WORKER_UNREACHABLE: {
    scope: "peer",
    status: 502,
    message: "no connection to worker {worker}: {why}",
    remedy: "check that the worker runs and that its url in the router's file is right",
  },
  WORKER_LOST: {
    scope: "peer",
    status: 502,
    message: "worker {worker} went away before its answer was complete: {why}",
    remedy: "send the request again; look at the worker's log",
  },
  WORKER_SILENT: {
    scope: "peer",
    status: 504,
    message: "worker {worker} sent nothing for {ms} ms (--request_timeout)",
    remedy: "raise --request_timeout, or look at the worker's log",
  },
  WORKER_FAILED: {
    scope: "peer",
    status: 502,
    message: "worker {worker} answered {status}: {text}",
    remedy: "look at the worker's log under this request id",
  },
  WORKER_NONSENSE: {
    scope: "peer",
    status: 502,
    message: "worker {worker} gave an answer that can't be used: {why}",
    remedy: "check that the worker is of a version that the router knows, and look at its log",
  },
  HANDOFF_EXPIRED: {
    scope: "transfer",
    status: 504,
    message: "the KV at context worker {worker} expired after {ms} ms, before a generation worker could take it",
    remedy: "add generation workers, or raise kv_transfer_timeout_ms",
  },
} as const satisfies Record<string, ErrorSpec>;
