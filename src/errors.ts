/** What is now broken, and so what a caller may replace: retry logic reads this, never the text. */
export type ErrorScope = "call" | "transfer" | "peer" | "instance" | "process";

/** One documented failure. `message` may hold `{name}` places that the details fill. */
export interface ErrorSpec {
  readonly scope: ErrorScope;
  /** HTTP status a worker or router answers with when this reaches a client (spec system.md S123-S125). */
  readonly status: number;
  readonly message: string;
  readonly remedy: string;
}

/**
 * Every error this package raises. docs/errors.md and a test are generated from this object; codes are public API: never
 * reuse or rename one.
 */
export const errors = {
  // --- calls and options -------------------------------------------------------------------------------------------
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
  // --- requests over HTTP ------------------------------------------------------------------------------------------
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
  // --- router ------------------------------------------------------------------------------------------------------
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
  // --- configuration and command line ------------------------------------------------------------------------------
  CONFIG_INVALID: {
    scope: "process",
    status: 500,
    message: "{count} problem(s) in the configuration:\n{problems}",
    remedy: "correct the marked places; `kvt config check FILE` reads the file without starting anything",
  },
  USAGE: {
    scope: "process",
    status: 500,
    message: "{what}",
    remedy: "{remedy}",
  },
  BIND_FAILED: {
    scope: "process",
    status: 500,
    message: "can't listen on {host}:{port}: {why}",
    remedy: "choose another port, or end the process that uses it",
  },
  START_TIMEOUT: {
    scope: "process",
    status: 503,
    message: "not ready within {seconds} s: {missing}",
    remedy: "look at the logs of the servers named, or raise --server_start_timeout",
  },
  DEMO_FAILED: {
    scope: "process",
    status: 500,
    message: 'the demo does not show what it should: {why} (answer: "{answer}")',
    remedy: "please report it with the output of kvt demo --keep",
  },
  MEMBER_ENDED: {
    scope: "process",
    status: 500,
    message: "{name} ended while it was starting ({outcome}); the end of its log:\n{log}",
    remedy: "start it alone with kvt serve or kvt disaggregated to see more",
  },
  SERVER_ANSWER: {
    scope: "call",
    status: 502,
    message: "{server} gave {why}",
    remedy: "look at the server's log; kvt client --server-start-timeout waits for one that is starting",
  },
  // --- admission of a worker ---------------------------------------------------------------------------------------
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
  // --- models --------------------------------------------------------------------------------------------------------
  MODEL_UNREADABLE: {
    scope: "process",
    status: 500,
    message: "the model file {file} can't be read: {why}",
    remedy: "give the path of a GGUF file that this user may read",
  },
  MODEL_INVALID: {
    scope: "process",
    status: 500,
    message: "the model file {file} is damaged or no GGUF file: {why}",
    remedy: "fetch or convert the file again and compare its size and hash",
  },
  MODEL_UNSUPPORTED: {
    scope: "process",
    status: 500,
    message: "the model file {file} needs what the reference engine does not have: {why}",
    remedy: "use a Llama-family GGUF with F32, F16, BF16, Q8_0, Q4_0, Q4_1 or Q6_K tensors, or plug in another engine",
  },
  // --- tokenizer ---------------------------------------------------------------------------------------------------
  TOKENIZER_UNSUPPORTED: {
    scope: "process",
    status: 500,
    message: "the model's tokenizer is of a kind that is not supported: {key} = {value}",
    remedy: "use a model whose {key} is one of: {known}",
  },
  TOKENIZER_BROKEN: {
    scope: "process",
    status: 500,
    message: "the tokenizer in the model file contradicts itself: {why}",
    remedy: "convert the model to GGUF again",
  },
  TOKENIZER_BUSY: {
    scope: "instance",
    status: 429,
    message: "{queued} long prompts wait to be tokenised already",
    remedy: "retry later, or send token ids",
  },
  TOKENIZER_FAILED: {
    scope: "call",
    status: 500,
    message: "tokenising a text of {chars} characters failed: {why}",
    remedy: "please report it with the log lines around it",
  },
  PROMPT_UNBROKEN: {
    scope: "call",
    status: 413,
    message: "the prompt holds {chars} characters without the end of a word, the limit is {limit}",
    remedy: "break the text up, or send token ids",
  },
  // --- native addon ------------------------------------------------------------------------------------------------
  NATIVE_NOT_FOUND: {
    scope: "process",
    status: 500,
    message: "the native addon was not found (looked in {tried})",
    remedy: "{remedy}",
  },
  NATIVE_BROKEN: {
    scope: "process",
    status: 500,
    message: "the native addon {file} can't be loaded: {why}",
    remedy: "{remedy}",
  },
  // --- NIXL --------------------------------------------------------------------------------------------------------
  NIXL_NOT_FOUND: {
    scope: "process",
    status: 500,
    message: "NIXL was not found; looked for libnixl_capi.so at: {tried}",
    remedy: "`kvt nixl install` brings it; or pip install nixl-cu13 (or nixl-cu12), or set KVT_NIXL_LIBRARY",
  },
  NIXL_UNUSABLE: {
    scope: "process",
    status: 500,
    message: "NIXL can't be used: {why}",
    remedy: "`kvt nixl install` brings a copy that works; KVT_NIXL_LIBRARY names one of your own",
  },
  NIXL_FAILED: {
    scope: "instance",
    status: 503,
    message: "{why}",
    remedy: "`kvt doctor` shows which plug-ins of NIXL can be loaded here, and what the others lack",
  },
  NIXL_INSTALL_FAILED: {
    scope: "process",
    status: 500,
    message: "NIXL {version} was not installed: {why}",
    remedy:
      "check that python3 has pip and reaches PyPI; `kvt nixl install --help` names the versions that are known to work",
  },
  // --- pool and blocks ---------------------------------------------------------------------------------------------
  OUT_OF_BLOCKS: {
    scope: "call",
    status: 429,
    message: "{wanted} blocks wanted, {free} of {total} are free",
    remedy: "retry later, or open a larger pool",
  },
  POOL_UNAVAILABLE: {
    scope: "process",
    status: 500,
    message: "a pool of {bytes} bytes can't be reserved: {why}",
    remedy: "use fewer blocks, or raise the memory limit (memory.max, /dev/shm is not used)",
  },
  MEMORY_REFUSED: {
    scope: "call",
    status: 500,
    message: "the memory can't be adopted as a pool: {why}",
    remedy: "give fd, offset and bytes of a memfd made with MFD_ALLOW_SEALING that no other transceiver uses",
  },
  SOCKET_DIR_REFUSED: {
    scope: "process",
    status: 500,
    message: "the socket directory can't be used: {why}",
    remedy: "set KVT_SOCKET_DIR to a short path of a directory that belongs to this user and has mode 0700",
  },
  // --- transfers ---------------------------------------------------------------------------------------------------
  BAD_STATE: {
    scope: "transfer",
    status: 400,
    message: "the opaque state is not one of ours: {why}",
    remedy: "pair this worker with a kv-transceiver context worker of a compatible version",
  },
  CANCELLED: {
    scope: "transfer",
    status: 499,
    message: "transfer {transfer} was cancelled: {why}",
    remedy: "none: the caller asked for it",
  },
  TRANSFER_TIMEOUT: {
    scope: "transfer",
    status: 504,
    message: "transfer {transfer} did not end within {ms} ms (kv_transfer_timeout_ms)",
    remedy: "raise kv_transfer_timeout_ms, or look for a slow path with `kvt doctor`",
  },
  QUEUE_TIMEOUT: {
    scope: "transfer",
    status: 503,
    message: "transfer {transfer} waited {ms} ms for its turn and was given up",
    remedy: "add workers, or raise kv_transfer_timeout_ms, which also limits the queue",
  },
  LEASE_EXPIRED: {
    scope: "transfer",
    status: 504,
    message:
      "the lease of transfer {transfer} ended after {ms} ms without word from the receiver; its outcome is unknown here",
    remedy: "look at the receiver's log; its blocks here are free again",
  },
  OFFERS_FULL: {
    scope: "instance",
    status: 429,
    message: "{open} offers of KV are open already, the limit is {limit} (maxOffers)",
    remedy:
      "retry later or elsewhere: offers end when they are fetched or released, at the latest after kv_transfer_timeout_ms",
  },
  OFFER_EXPIRED: {
    scope: "transfer",
    status: 504,
    message: "nobody fetched the KV of request {request} within {ms} ms",
    remedy: "fetch sooner, or raise kv_transfer_timeout_ms",
  },
  NO_OFFER: {
    scope: "transfer",
    status: 404,
    message: "peer {peer} holds no offer for request {request}",
    remedy: "prefill again: the offer was fetched, released, or has expired",
  },
  GONE: {
    scope: "transfer",
    status: 404,
    message: "the offer of request {request} at {peer} has ended",
    remedy: "prefill again",
  },
  GAVE_WAY: {
    scope: "transfer",
    status: 503,
    message:
      "request {request} gave way to {older}: for {ms} ms it waited for blocks of older requests, which may wait for its own",
    remedy: "send it again, as our router does by itself; larger pools or workers of one role each avoid it",
  },
  BUSY: {
    scope: "transfer",
    status: 503,
    message: "the offer of request {request} is leased to an earlier receiver for {ms} ms more",
    remedy: "retry after that time, or prefill again",
  },
  BAD_TOKEN: {
    scope: "transfer",
    status: 403,
    message: "peer {peer} refused the capability token of request {request}",
    remedy: "use the opaque state exactly as the context worker returned it",
  },
  SENDER_ABORTED: {
    scope: "transfer",
    status: 502,
    message: "the sender ended transfer {transfer}: {why}",
    remedy: "prefill again",
  },
  RECEIVER_FAILED: {
    scope: "transfer",
    status: 502,
    message: "the receiver ended transfer {transfer} without the data: {why}",
    remedy: "look at the receiver's log",
  },
  COPY_FAILED: {
    scope: "transfer",
    status: 502,
    message: "moving the blocks of transfer {transfer} failed on path {path}: {why}",
    remedy: "see `kvt doctor`; the request can be prefilled again",
  },
  DIGEST_MISMATCH: {
    scope: "transfer",
    status: 502,
    message:
      "transfer {transfer} from {peer}: block {block} (number {index} of the sequence, tokens {from} to {to}, the sender's block {source}) arrived with another digest than the sender's, as {more} other blocks did",
    remedy:
      "it was read twice; prefill the request again. If it comes back, suspect memory, transport or an engine that writes into offered blocks",
  },
  // --- peers -------------------------------------------------------------------------------------------------------
  PEER_UNREACHABLE: {
    scope: "peer",
    status: 503,
    message: "no connection to peer {peer}: {why}",
    remedy: "check that the worker runs and its control port is reachable",
  },
  PEER_LOST: {
    scope: "peer",
    status: 503,
    message: "peer {peer} (epoch {epoch}) was silent for {ms} ms or closed the connection",
    remedy: "its blocks return when the lease ends; the request can be prefilled again",
  },
  STALE_EPOCH: {
    scope: "peer",
    status: 503,
    message: "peer {peer} restarted: epoch {epoch} is gone",
    remedy: "prefill again",
  },
  PEER_REFUSED: {
    scope: "peer",
    status: 403,
    message: "peer {peer} refused the connection: {why}",
    remedy: "give both sides the same KVT_AUTH_TOKEN, or use an offer's state",
  },
  PROTOCOL: {
    scope: "peer",
    status: 502,
    message: "peer {peer} broke the control protocol: {why}",
    remedy: "run matching kv-transceiver versions on both sides",
  },
  LAYOUT_MISMATCH: {
    scope: "peer",
    status: 503,
    message: "the KV layouts of this side and {peer} differ: {fields}",
    remedy: "start both workers with the same model, KV dtype and tokens_per_block",
  },
  NO_PATH: {
    scope: "peer",
    status: 503,
    message: "no path moves KV between this process and {peer}: {why}",
    remedy: "run both workers on one host with a shared KVT_SOCKET_DIR",
  },
} as const satisfies Record<string, ErrorSpec>;

export type ErrorCode = keyof typeof errors;

type Places<Text extends string> = Text extends `${string}{${infer Name}}${infer Rest}` ? Name | Places<Rest> : never;
/** The details a code needs: exactly the places of its message and remedy. */
export type ErrorDetails<Code extends ErrorCode> = Record<
  Places<(typeof errors)[Code]["message"]> | Places<(typeof errors)[Code]["remedy"]>,
  string | number
>;

const fill = (text: string, details: Readonly<Record<string, string | number>>): string =>
  text.replace(/\{(\w+)\}/g, (place, name: string) => String(details[name] ?? place));

const mark = Symbol.for("kv-transceiver.KvError");

/** An error with a stable `code`, a sentence that says what happened, and a `remedy`. Match on `code`, not on the text. */
export class KvError<Code extends ErrorCode = ErrorCode> extends Error {
  override readonly name = "KvError";
  readonly code: Code;
  readonly scope: ErrorScope;
  readonly status: number;
  readonly remedy: string;
  readonly details: Readonly<Record<string, string | number>>;
  /** @internal */ readonly [mark] = true;

  constructor(code: Code, details: ErrorDetails<Code>, options?: ErrorOptions) {
    const spec: ErrorSpec = errors[code];
    super(fill(spec.message, details), options);
    this.code = code;
    this.scope = spec.scope;
    this.status = spec.status;
    this.remedy = fill(spec.remedy, details);
    this.details = details;
  }

  /** Works across two loaded copies of this package, which `instanceof` alone would not. */
  static override [Symbol.hasInstance](value: unknown): value is KvError {
    return typeof value === "object" && value !== null && mark in value;
  }
}

export const isKvError = (value: unknown, code?: ErrorCode): value is KvError =>
  value instanceof KvError && (code === undefined || value.code === code);
