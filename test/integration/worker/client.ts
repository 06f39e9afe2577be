import { randomUUID } from "node:crypto";
import { SseParser } from "../../../src/openai/index.ts";

export type Body = Record<string, unknown>;
type Kind = "chat" | "completion";

const paths = { chat: "/v1/chat/completions", completion: "/v1/completions" } as const;

/** What both routes and both ways to answer have in common. */
export interface Reply {
  readonly text: string;
  readonly finish: string;
  readonly stop: unknown;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly cachedTokens: number;
  readonly logprobs: unknown;
}

export class Refused extends Error {
  readonly status: number;
  readonly code: string;
  readonly body: string;

  constructor(status: number, body: string) {
    super(`${status}: ${body}`);
    this.status = status;
    this.body = body;
    const parsed = JSON.parse(body) as { error?: { code?: string } };
    this.code = parsed.error?.code ?? "";
  }
}

export interface CallOptions {
  readonly id?: string;
  readonly signal?: AbortSignal;
}

/** The raw text, since its 64-bit integers do not survive JSON.parse. */
export async function post(url: string, path: string, body: string | Body, options: CallOptions = {}): Promise<string> {
  const response = await fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": options.id ?? randomUUID() },
    body: typeof body === "string" ? body : JSON.stringify(body),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const text = await response.text();
  if (response.status !== 200) throw new Refused(response.status, text);
  return text;
}

/** One request to one worker, whole or streamed, as the body says. */
export async function ask(url: string, kind: Kind, body: string | Body, options: CallOptions = {}): Promise<Reply> {
  const text = await post(url, paths[kind], body, options);
  return text.startsWith("data:") ? streamedReply(text) : wholeReply(text);
}

interface AnyChoice {
  readonly text?: string;
  readonly message?: { readonly content: string };
  readonly delta?: { readonly content?: string };
  readonly logprobs: {
    content?: unknown[];
    tokens?: string[];
    token_logprobs?: number[];
    top_logprobs?: unknown[];
  } | null;
  readonly finish_reason: string | null;
  readonly stop_reason: unknown;
}

interface AnyAnswer {
  readonly choices: readonly AnyChoice[];
  readonly usage?: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details: { readonly cached_tokens: number };
  } | null;
}

function wholeReply(text: string): Reply {
  const answer = JSON.parse(text) as AnyAnswer;
  const choice = answer.choices[0] as AnyChoice;
  return {
    text: choice.text ?? choice.message?.content ?? "",
    finish: choice.finish_reason ?? "",
    stop: choice.stop_reason,
    ...usageOf(answer),
    logprobs: choice.logprobs?.content ?? choice.logprobs,
  };
}

function usageOf({ usage }: AnyAnswer) {
  return {
    promptTokens: usage?.prompt_tokens ?? -1,
    outputTokens: usage?.completion_tokens ?? -1,
    cachedTokens: usage?.prompt_tokens_details.cached_tokens ?? -1,
  };
}

function streamedReply(text: string): Reply {
  const events = new SseParser().push(new TextEncoder().encode(text));
  if (events.at(-1) !== "[DONE]") throw new Error(`the stream did not end with [DONE]: ${text.slice(-300)}`);
  const chunks = events.slice(0, -1).map((event) => JSON.parse(event) as AnyAnswer);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  const last = choices.find((choice) => choice.finish_reason !== null);
  const total = chunks.find((chunk) => chunk.usage != null);
  const contents = choices.flatMap((choice) => choice.logprobs?.content ?? []);
  return {
    text: choices.map((choice) => choice.text ?? choice.delta?.content ?? "").join(""),
    finish: last?.finish_reason ?? "",
    stop: last?.stop_reason,
    ...usageOf(total ?? { choices: [] }),
    logprobs: contents.length > 0 ? contents : null,
  };
}

export interface Pair {
  readonly context: { readonly url: string };
  readonly generation: { readonly url: string };
}

/** The context hop: the reply's text, and the params with request_type exchanged, both as JSON text with exact integers. */
export async function contextHop(
  url: string,
  kind: Kind,
  body: Body,
  options: CallOptions & { readonly params?: string } = {},
): Promise<{
  readonly reply: string;
  readonly params: string;
  readonly promptTokenIds: string;
  readonly finish: string;
}> {
  const { stream: _stream, stream_options: _options, ...rest } = body;
  const plain = JSON.stringify({ ...rest, stream: false });
  const sent = `${plain.slice(0, -1)},"disaggregated_params":{"request_type":"context_only"${options.params ?? ""}}}`;
  const reply = await post(url, paths[kind], sent, options);
  const params = /"disaggregated_params":(\{.*?\})(?=\}\])/.exec(reply)?.[1] ?? "";
  return {
    reply,
    params: params.replace("context_only", "generation_only"),
    promptTokenIds: /"prompt_token_ids":(\[[^\]]*\])/.exec(reply)?.[1] ?? "[]",
    finish: /"finish_reason":"(\w+)"/.exec(reply)?.[1] ?? "",
  };
}

export const generationBody = (kind: Kind, body: Body, hop: { params: string; promptTokenIds: string }): string => {
  const text = JSON.stringify(body);
  const key = kind === "chat" ? "prompt_token_ids" : "prompt";
  return `${text.slice(0, -1)},"${key}":${hop.promptTokenIds},"disaggregated_params":${hop.params}}`;
};

/** What a router does with one request (trtllm-protocol.md section 2.2), without its failure handling. */
export async function askPair(pair: Pair, kind: Kind, body: Body, options: CallOptions = {}): Promise<Reply> {
  const id = options.id ?? randomUUID();
  const hop = await contextHop(pair.context.url, kind, body, { ...options, id });
  if (hop.finish !== "not_finished") return wholeReply(hop.reply);
  const { prompt: _prompt, ...rest } = body;
  const sent = generationBody(kind, kind === "chat" ? body : rest, hop);
  return ask(pair.generation.url, kind, sent, { ...options, id });
}
