import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { parseBody } from "../../../src/openai/index.ts";

interface SentBody {
  readonly stream?: boolean;
  readonly disaggregated_params?: { readonly request_type?: string; readonly disagg_request_id?: bigint | number };
}

/** One request that a scripted worker got on an OpenAI route. */
export interface Received {
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  /** As it came: 64-bit ids are compared as text. */
  readonly text: string;
  readonly body: SentBody;
  readonly hop: "context" | "generation" | "aggregated";
  readonly response: ServerResponse;
  /** Resolves when the router closed the connection before the answer was complete. */
  readonly abandoned: Promise<void>;
}

type Script = (request: Received) => void | Promise<void>;

export const CTX_REQUEST_ID = (2n ** 62n + 1n).toString();
export const STATE = "b3BhcXVl";

/** A context reply as the text that trtllm-serve (`length`) or one of ours (`not_finished`) writes. */
export function contextReply(options: { finish?: string; id?: string; params?: string; top?: string } = {}): string {
  const id = options.id ?? CTX_REQUEST_ID;
  const params =
    options.params ??
    `{"request_type":"context_only","first_gen_tokens":[11],"ctx_request_id":${id},"encoded_opaque_state":"${STATE}","disagg_request_id":${id}}`;
  const choice = `{"index":0,"text":" one","logprobs":null,"finish_reason":"${options.finish ?? "not_finished"}","stop_reason":null,"disaggregated_params":${params}}`;
  const usage =
    '{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}';
  return `{"id":"cmpl-ctx","object":"text_completion","created":1,"model":"tiny","choices":[${choice}],"usage":${usage},"prompt_token_ids":[5,6,7]${options.top ?? ""}}`;
}

export const generationReply = (text = " one two"): string =>
  JSON.stringify({
    id: "cmpl-gen",
    object: "text_completion",
    created: 1,
    model: "tiny",
    choices: [{ index: 0, text, logprobs: null, finish_reason: "length", stop_reason: null }],
    usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 },
  });

export const sendJson = (request: Received, text: string, status = 200, headers: Record<string, string> = {}): void => {
  request.response.writeHead(status, { "content-type": "application/json", ...headers }).end(text);
};

/** Pieces of the event stream a generation worker sends. */
export const events: readonly string[] = [" one", " two", " three"]
  .map((text) => `data: ${JSON.stringify({ choices: [{ index: 0, text, finish_reason: null }] })}\n\n`)
  .concat("data: [DONE]\n\n");

export const beginStream = (request: Received): ServerResponse =>
  request.response.writeHead(200, { "content-type": "text/event-stream" });

/** An HTTP server on a real socket that behaves like a trtllm-serve worker, and badly where a test says so. */
export class ScriptedWorker {
  readonly #server: Server;
  readonly #isSecure: boolean;
  readonly #sockets = new Set<Socket>();
  readonly #waiting: { enough: () => boolean; resolve: () => void }[] = [];
  #host = "";
  port = 0;
  health: number | "hang" = 200;
  /** GET /server_info; null: the route does not exist. */
  info: Record<string, unknown> | null = {
    kvt_protocol: 1,
    engine: "reference",
    epoch: "0123456789abcdef",
    offer_ms: 60_000,
  };
  version = "1.2.0";
  models: readonly string[] = ["tiny"];
  clock: { receive_ts: number; transmit_ts: number } | null = { receive_ts: 5, transmit_ts: 5 };
  /** Offsets that the router has posted. */
  readonly offsets: number[] = [];
  readonly requests: Received[] = [];
  readonly released: string[] = [];
  readonly aborted: string[] = [];
  /** Texts of the next answers to GET /perf_metrics; then empty lists. */
  readonly perf: string[] = [];
  /** The answer to /kv/abort. */
  abortAnswer: { readonly status: number; readonly body: unknown } = { status: 200, body: { aborted: 1 } };
  /** Delays it. */
  beforeAborted: () => Promise<void> = async () => undefined;
  readonly authorizations: (string | undefined)[] = [];
  context: Script = (request) =>
    sendJson(
      request,
      contextReply({ id: String(request.body.disaggregated_params?.disagg_request_id ?? CTX_REQUEST_ID) }),
    );
  generation: Script = (request) => {
    if (request.body.stream !== true) return sendJson(request, generationReply());
    const response = beginStream(request);
    for (const event of events) response.write(event);
    response.end();
    return undefined;
  };
  aggregated: Script = (request) => this.generation(request);

  /** With `tls` (PEM) it speaks https only. */
  constructor(tls?: { readonly key: string; readonly cert: string }) {
    const handle = (request: IncomingMessage, response: ServerResponse): void => void this.#handle(request, response);
    this.#isSecure = tls !== undefined;
    this.#server = tls === undefined ? createServer(handle) : createTlsServer(tls, handle);
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  async listen(port = 0, host = "127.0.0.1"): Promise<this> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(port, host, resolve);
    });
    this.port = (this.#server.address() as AddressInfo).port;
    this.#host = host.includes(":") ? `[${host}]` : host;
    return this;
  }

  get address() {
    const place = `${this.#host}:${this.port}`;
    return this.#isSecure
      ? { url: `https://${place}`, origin: `https://${place}` }
      : { url: place, origin: `http://${place}` };
  }

  /** Resolves once this is true; looked at after each thing that the worker hears. */
  until(enough: () => boolean): Promise<void> {
    if (enough()) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ enough, resolve }));
  }

  /** As by kill -9: every connection is reset and the port is closed. */
  async die(): Promise<void> {
    for (const socket of this.#sockets) socket.resetAndDestroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #heard(): void {
    for (const waiter of [...this.#waiting]) {
      if (!waiter.enough()) continue;
      this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
      waiter.resolve();
    }
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const text = await readText(request);
    const path = request.url ?? "/";
    const json = (value: unknown, status = 200): void => {
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    };
    if (path === "/health") {
      if (this.health !== "hang") response.writeHead(this.health).end(this.health === 200 ? "" : "wedged");
    } else if (path === "/server_info") {
      if (this.info === null) json({ detail: "Not Found" }, 404);
      else json(this.info);
    } else if (path === "/version") json({ version: this.version });
    else if (path === "/v1/models") json({ object: "list", data: this.models.map((id) => ({ id, object: "model" })) });
    else if (path === "/steady_clock_offset") {
      if (this.clock === null) json({}, 404);
      else if (request.method === "POST") {
        this.offsets.push(JSON.parse(text).offset);
        json({});
      } else json(this.clock);
    } else if (path === "/perf_metrics") {
      response.writeHead(200, { "content-type": "application/json" }).end(this.perf.shift() ?? "[]");
    } else if (path === "/kv/release") {
      this.released.push(text);
      json({ outcome: "cancelled" });
    } else if (path === "/kv/abort") {
      this.aborted.push(JSON.parse(text).request_id);
      this.authorizations.push(request.headers.authorization);
      this.#heard();
      await this.beforeAborted();
      json(this.abortAnswer.body, this.abortAnswer.status);
    } else if (path === "/v1/completions" || path === "/v1/chat/completions")
      this.#serve(path, request, text, response);
    else json({ detail: "Not Found" }, 404);
    this.#heard();
  }

  #serve(path: string, request: IncomingMessage, text: string, response: ServerResponse): void {
    const body = parseBody(text) as SentBody;
    const type = body.disaggregated_params?.request_type;
    const hop = type === "context_only" ? "context" : type === "generation_only" ? "generation" : "aggregated";
    const abandoned = new Promise<void>((resolve) => {
      response.on("close", () => {
        if (!response.writableFinished) resolve();
      });
    });
    const received: Received = { path, headers: request.headers, text, body, hop, response, abandoned };
    this.requests.push(received);
    void this[hop](received);
  }
}

async function readText(request: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  try {
    for await (const piece of request) pieces.push(piece as Buffer);
  } catch {
    // The router went away in the middle of its request.
  }
  return Buffer.concat(pieces).toString("utf8");
}
