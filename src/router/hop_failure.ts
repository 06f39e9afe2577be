import { KvError } from "../errors.ts";
import { type ErrorAnswer, type ErrorPlace, errorBody, type Hop } from "../openai/index.ts";
import type { Answer } from "./exchange.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

/**
 * What can be done about a failed hop, as long as the client has no byte of an answer:
 * `retry` at another worker, or at the same one if it is the only one · `elsewhere` only at another one, because this one is full ·
 * `prefill_again` because the hand-off is dead, whoever fetches it · `final`: the request itself is at fault.
 */
export type Verdict = "retry" | "elsewhere" | "prefill_again" | "final";

/** What a worker said when it refused: passed on to the client with the worker's status (S123-S126). */
export interface WorkerWords {
  readonly status: number;
  readonly message: string;
  readonly code: string | undefined;
  readonly type: string | undefined;
  readonly param: string | null;
  readonly retryAfter: string | undefined;
}

/** Times that a request gives way to older ones. Each is one that came before it, so this is for a pool that no pair of requests fits. */
export const GAVE_WAY_MAX = 16;

/** One hop that brought no usable answer. */
export class HopFailure extends Error {
  override readonly name = "HopFailure";
  readonly hop: Hop;
  readonly worker: UpstreamWorker;
  readonly verdict: Verdict;
  readonly error: KvError;
  readonly words: WorkerWords | undefined;

  constructor(fields: {
    readonly hop: Hop;
    readonly worker: UpstreamWorker;
    readonly verdict: Verdict;
    readonly error: KvError;
    readonly words?: WorkerWords;
  }) {
    super(fields.error.message, { cause: fields.error });
    this.hop = fields.hop;
    this.worker = fields.worker;
    this.verdict = fields.verdict;
    this.error = fields.error;
    this.words = fields.words;
  }

  /** It was ended so that older requests go on; nothing is wrong with worker or hand-off, and it may be sent again as often as that happens. */
  get gaveWay(): boolean {
    return this.words?.code === GAVE_WAY;
  }

  /** How the client hears of it when nothing more can be tried. */
  toAnswer(requestId: string): ErrorAnswer {
    const place: ErrorPlace = { requestId, hop: this.hop, worker: this.worker.url };
    const ours = errorBody(this.error, place);
    const { words } = this;
    if (words === undefined || !isPassedOn(this.verdict, words.status)) return ours;
    return {
      status: words.status,
      headers: {
        "x-request-id": requestId,
        ...(words.status === 429 || words.status === 503 ? { "retry-after": words.retryAfter ?? "1" } : {}),
      },
      body: {
        error: {
          ...ours.body.error,
          message: words.message,
          type: words.type ?? typeOf(words.status),
          code: words.code ?? ours.body.error.code,
          param: words.param,
        },
      },
    };
  }
}

/** They are about router and worker, not about the client: it did not send the token, and it did not leave. */
const notForClients: readonly number[] = [401, 403, 408, 499];

/**
 * Statuses that mean to the client what they mean to us; everything else from a worker is our 502 (S125). A dead hand-off's 404 says
 * that there is no such KV, which is no news for somebody who asked for a completion.
 */
function isPassedOn(verdict: Verdict, status: number): boolean {
  if (status === 503 || status === 504) return true;
  return status >= 400 && status < 500 && verdict !== "prefill_again" && !notForClients.includes(status);
}

const typeOf = (status: number): string =>
  status === 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";

const GAVE_WAY = "gave_way";

/** Codes of our workers that say: this hand-off brings no KV any more (src/errors.ts, scope transfer or peer). */
const deadHandoff: ReadonlySet<string> = new Set([
  "no_offer",
  "gone",
  "busy",
  "bad_token",
  "stale_epoch",
  "offer_expired",
  "lease_expired",
  "sender_aborted",
  "receiver_failed",
  "copy_failed",
  "transfer_timeout",
  "peer_unreachable",
  "peer_lost",
  "protocol",
]);

/** The failure that a worker's answer with another status than 200 is. */
export function failureOfAnswer(hop: Hop, worker: UpstreamWorker, answer: Answer): HopFailure {
  const words = wordsOf(answer);
  const details = { worker: worker.url, status: words.status, text: words.message };
  return new HopFailure({
    hop,
    worker,
    verdict: verdictOf(hop, words),
    error: new KvError("WORKER_FAILED", details),
    words,
  });
}

/** The failure that a stream is which does not begin with what the client has of it already. */
export function otherBeginning(worker: UpstreamWorker, began: string): HopFailure {
  const why = `its stream does not begin with the token that the context worker sampled: ${began}`;
  const error = new KvError("WORKER_NONSENSE", { worker: worker.url, why });
  return new HopFailure({ hop: "generation", worker, verdict: "retry", error });
}

const EXCERPT_CHARS = 500;

/** The failure that a 200 without a usable answer is; it carries the worker's text, which mostly tells the cause (#13119). */
export function nonsense(hop: Hop, worker: UpstreamWorker, answer: Answer, why: string): HopFailure {
  const said = wordsOf(answer).message.slice(0, EXCERPT_CHARS);
  const error = new KvError("WORKER_NONSENSE", { worker: worker.url, why: `${why}; it said: ${said}` });
  return new HopFailure({ hop, worker, verdict: "retry", error });
}

function verdictOf(hop: Hop, words: WorkerWords): Verdict {
  if (words.code === GAVE_WAY) return "prefill_again";
  if (hop === "generation" && words.code !== undefined && deadHandoff.has(words.code)) return "prefill_again";
  if (words.status === 429) return "elsewhere";
  return words.status >= 400 && words.status < 500 ? "final" : "retry";
}

const MESSAGE_CHARS_MAX = 2048;

/** Reads the error body of our workers, of trtllm-serve (`{object: "error", message, type}`), of FastAPI (`{detail}`), or plain text. */
export function wordsOf(answer: Answer): WorkerWords {
  const text = answer.body.toString("utf8", 0, 64 * 1024);
  const body = parsed(text);
  const inner = objectIn(body, "error") ?? body;
  const message = stringIn(inner, "message") ?? stringIn(inner, "detail") ?? (text.trim() || "(no text)");
  const retryAfter = answer.headers["retry-after"];
  return {
    status: answer.status,
    message: message.slice(0, MESSAGE_CHARS_MAX),
    code: stringIn(inner, "code"),
    type: stringIn(inner, "type"),
    param: stringIn(inner, "param") ?? null,
    retryAfter: typeof retryAfter === "string" ? retryAfter : undefined,
  };
}

type Fields = Readonly<Record<string, unknown>>;

function parsed(text: string): Fields | undefined {
  try {
    return asFields(JSON.parse(text));
  } catch {
    return undefined;
  }
}

const asFields = (value: unknown): Fields | undefined =>
  typeof value === "object" && value !== null ? (value as Fields) : undefined;

const objectIn = (fields: Fields | undefined, key: string): Fields | undefined => asFields(fields?.[key]);

function stringIn(fields: Fields | undefined, key: string): string | undefined {
  const value = fields?.[key];
  return typeof value === "string" ? value : undefined;
}
