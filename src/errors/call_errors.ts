import type { ErrorSpec } from "./spec.ts";

/** Calls of the library, requests over HTTP and their admission. */
export const callErrors = {
  // --- calls and options ------------------------------------------------------------------------------------------------
  INVALID_ARGUMENT: {
    scope: "call",
    status: 400,
    message: "{what} is not valid: {why}",
    remedy: "correct the argument named in the message",
  },
  CLOSED: {
    scope: "call",
    status: 503,
    message: "{what} is closed",
    remedy: "open a new one; a closed object takes no more work",
  },
  DRAINING: {
    scope: "instance",
    status: 503,
    message: "{what} is draining and takes no new work",
    remedy: "send the request to another instance",
  },
  NOT_PROVIDED: {
    scope: "call",
    status: 501,
    message: "{what} is not provided: {why}",
    remedy: "{remedy}",
  },
  INTERNAL: {
    scope: "process",
    status: 500,
    message: "internal defect in {where}: {why}",
    remedy: "please report it with the log lines around it",
  },
  // --- requests over HTTP -----------------------------------------------------------------------------------------------
  BAD_JSON: {
    scope: "call",
    status: 400,
    message: "the body can't be read as a JSON object: {why}",
    remedy: "send one JSON object in UTF-8 with Content-Type application/json",
  },
  INVALID_REQUEST: {
    scope: "call",
    status: 400,
    message: "`{param}`: {why}",
    remedy: "correct the field; docs/openai.md lists them all",
  },
  UNSUPPORTED_PARAMETER: {
    scope: "call",
    status: 400,
    message: "`{param}` is not supported: {why}",
    remedy: "leave the field out; docs/openai.md lists them all",
  },
  UNKNOWN_PARAMETER: {
    scope: "call",
    status: 400,
    message: "`{param}` is not a field of this request",
    remedy: "remove it or correct its name; docs/openai.md lists them all",
  },
  MODEL_NOT_FOUND: {
    scope: "call",
    status: 404,
    message: "there is no model `{model}` here; served: {served}",
    remedy: "use a name that GET /v1/models lists",
  },
  ROUTE_NOT_FOUND: {
    scope: "call",
    status: 404,
    message: "there is no {method} {path}",
    remedy: "docs/worker.md and docs/router.md list the routes",
  },
  UNAUTHORIZED: {
    scope: "call",
    status: 401,
    message: "{what} needs the bearer token of KVT_AUTH_TOKEN",
    remedy: "send `Authorization: Bearer ...`",
  },
  PROBE_RUNS: {
    scope: "call",
    status: 409,
    message: "a probe of paths runs on this worker already",
    remedy: "wait until it has ended, a minute at most",
  },
  BODY_TOO_LARGE: {
    scope: "call",
    status: 413,
    message: "the body is larger than {limit} bytes",
    remedy: "send less, or raise --max_body_mb",
  },
  PROMPT_TOO_LONG: {
    scope: "call",
    status: 413,
    message: "the prompt has {tokens} tokens, the limit is {limit} ({by})",
    remedy: "shorten the prompt",
  },
  NO_CHAT_TEMPLATE: {
    scope: "call",
    status: 400,
    message: "the model {model} has no chat template (tokenizer.chat_template is missing in its GGUF file)",
    remedy: "use /v1/completions, or a model with a template",
  },
  CHAT_TEMPLATE_FAILED: {
    scope: "call",
    status: 400,
    message: "the model's chat template refused the messages: {why}",
    remedy: "send the roles and the order that the model's template knows",
  },
  // --- admission of a worker --------------------------------------------------------------------------------------------
  QUEUE_FULL: {
    scope: "call",
    status: 429,
    message: "{waiting} requests wait already, the limit is {limit} (max_queue_size)",
    remedy: "retry later, or add workers",
  },
  ADMISSION_TIMEOUT: {
    scope: "call",
    status: 503,
    message: "request {request} waited {ms} ms for free KV blocks and was given up",
    remedy: "retry later, add workers, or give this one a larger pool (kv_cache_config.max_tokens)",
  },
  REQUEST_NOT_FOUND: {
    scope: "call",
    status: 404,
    message: "no request {request} is running here",
    remedy: "none: it has ended, or went to another worker",
  },
  TRANSCEIVER_DISABLED: {
    scope: "call",
    status: 400,
    message: "this worker has no transceiver, so it serves neither context_only nor generation_only requests",
    remedy: "set cache_transceiver_config.backend in its --config file",
  },
} as const satisfies Record<string, ErrorSpec>;
