import { request } from "undici";
import { z } from "zod";
import { KvError } from "../errors.ts";
import { SseParser } from "../openai/index.ts";

const Logprobs = z.object({ content: z.array(z.object({ token: z.string(), logprob: z.number() })).nullish() });
const Choice = z.object({
  logprobs: Logprobs.nullish(),
  text: z.string().nullish(),
  message: z.object({ content: z.string().nullish() }).nullish(),
  delta: z.object({ content: z.string().nullish() }).nullish(),
  finish_reason: z.string().nullish(),
});
const Usage = z.object({ prompt_tokens: z.number(), completion_tokens: z.number() });
const Answer = z.object({ choices: z.array(Choice).nullish(), usage: Usage.nullish(), error: z.unknown().nullish() });

export interface Question {
  /** `http://localhost:8000`, no trailing slash. */
  readonly server: string;
  readonly endpoint: "completions" | "chat";
  /** The whole body; `stream: true` makes the answer arrive in pieces. */
  readonly body: Readonly<Record<string, unknown>>;
  readonly signal?: AbortSignal;
  /** Sees each piece of text when it arrives (streaming only). */
  readonly onText?: (text: string) => void;
}

export interface Reply {
  readonly text: string;
  readonly finishReason: string | null;
  readonly usage: { readonly promptTokens: number; readonly completionTokens: number } | null;
  /** Of a chat answer that was asked for `logprobs`, one an output token. */
  readonly logprobs: readonly number[];
  /** `x-request-id` of the answer. */
  readonly requestId: string;
  /** To the first piece of text; for an answer in one piece, to the whole. */
  readonly firstTextMs: number;
  readonly ms: number;
}

const routes = { completions: "/v1/completions", chat: "/v1/chat/completions" } as const;

const failed = (server: string, why: string): KvError => new KvError("SERVER_ANSWER", { server, why });

function errorText(status: number, body: string): string {
  try {
    const parsed = JSON.parse(body) as { error?: { message?: unknown } };
    if (typeof parsed.error?.message === "string") return `status ${status}: ${parsed.error.message}`;
  } catch {
    // Not JSON: shown as it is.
  }
  return `status ${status}: ${body.slice(0, 2048)}`;
}

/** Collects the pieces of one answer, streamed or not. */
class Collector {
  readonly #server: string;
  readonly #started = performance.now();
  readonly #onText: ((text: string) => void) | undefined;
  #text = "";
  #finishReason: string | null = null;
  #usage: Reply["usage"] = null;
  #firstTextMs: number | undefined;
  #choices = 0;
  readonly #logprobs: number[] = [];

  constructor(server: string, onText: ((text: string) => void) | undefined) {
    this.#server = server;
    this.#onText = onText;
  }

  take(json: string): void {
    let value: unknown;
    try {
      value = JSON.parse(json);
    } catch {
      throw failed(this.#server, `an answer that is no JSON: ${json.slice(0, 200)}`);
    }
    const answer = Answer.safeParse(value);
    if (!answer.success) throw failed(this.#server, `an answer of an unknown shape: ${json.slice(0, 200)}`);
    if (answer.data.error) throw failed(this.#server, errorText(200, json));
    const { usage } = answer.data;
    if (usage) this.#usage = { promptTokens: usage.prompt_tokens, completionTokens: usage.completion_tokens };
    const choice = answer.data.choices?.[0];
    if (!choice) return;
    this.#choices++;
    if (choice.finish_reason) this.#finishReason = choice.finish_reason;
    this.#logprobs.push(...(choice.logprobs?.content ?? []).map(({ logprob }) => logprob));
    const piece = choice.text ?? choice.message?.content ?? choice.delta?.content ?? "";
    if (piece === "") return;
    this.#firstTextMs ??= performance.now() - this.#started;
    this.#text += piece;
    this.#onText?.(piece);
  }

  reply(requestId: string): Reply {
    if (this.#choices === 0) throw failed(this.#server, "an answer without choices");
    const ms = performance.now() - this.#started;
    return {
      text: this.#text,
      finishReason: this.#finishReason,
      usage: this.#usage,
      logprobs: this.#logprobs,
      requestId,
      firstTextMs: this.#firstTextMs ?? ms,
      ms,
    };
  }
}

/**
 * Sends one request to an OpenAI-compatible server and waits for the whole answer.
 * @throws KvError SERVER_ANSWER when the status is not 200, a stream ends early, or there are no choices
 */
export async function ask(question: Question): Promise<Reply> {
  const { server, signal } = question;
  const collector = new Collector(server, question.onText);
  try {
    const response = await request(`${server}${routes[question.endpoint]}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(question.body),
      // The server bounds the request; a client that waits longer than it does no harm.
      headersTimeout: 0,
      bodyTimeout: 0,
      ...(signal ? { signal } : {}),
    });
    const requestId = String(response.headers["x-request-id"] ?? "");
    if (response.statusCode !== 200) throw failed(server, errorText(response.statusCode, await response.body.text()));
    if (question.body.stream !== true) {
      collector.take(await response.body.text());
      return collector.reply(requestId);
    }
    const parser = new SseParser();
    let done = false;
    for await (const bytes of response.body) {
      for (const event of parser.push(bytes as Uint8Array)) {
        if (event === "[DONE]") done = true;
        else if (!done) collector.take(event);
      }
    }
    if (!done) throw failed(server, "a stream that ended before data: [DONE]");
    return collector.reply(requestId);
  } catch (thrown) {
    if (thrown instanceof KvError || signal?.aborted) throw thrown;
    throw failed(server, thrown instanceof Error ? connectionText(thrown) : String(thrown));
  }
}

function connectionText(error: Error): string {
  const code = (error as NodeJS.ErrnoException).code;
  if (code === "ECONNREFUSED") return "no connection: nothing listens there";
  if (error instanceof AggregateError && error.errors[0] instanceof Error) return connectionText(error.errors[0]);
  return error.message === "" ? String(code ?? error.name) : error.message;
}

/** Polls `/health` until it answers 200. Resolves false when `timeoutMs` is over first. */
export async function waitUntilHealthy(
  server: string,
  timeoutMs: number,
  periodMs: number,
  signal?: AbortSignal,
): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    if (await healthy(server)) return true;
    const left = deadline - performance.now();
    if (left <= 0 || signal?.aborted) return false;
    await new Promise((resolve) => setTimeout(resolve, Math.min(periodMs, left)));
  }
}

async function healthy(server: string): Promise<boolean> {
  try {
    const response = await request(`${server}/health`, { headersTimeout: 2_000, bodyTimeout: 2_000 });
    await response.body.dump();
    return response.statusCode === 200;
  } catch {
    // Not listening yet, or too busy to answer: the next poll says.
    return false;
  }
}
