import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import { type FastifyInstance, fastify } from "fastify";
import { KvError } from "../errors.ts";
import { type ErrorAnswer, errorBody } from "./error_body.ts";

export interface FrontOptions {
  readonly bodyBytesMax: number;
  /** How long a client may take to send its request. */
  readonly requestReadMs: number;
  /** Hears of every error that is answered here. */
  readonly onError: (error: unknown, answer: ErrorAnswer) => void;
}

const ID_PATTERN = /^[\x21-\x7e]{1,128}$/;

/** The client's `x-request-id` where it is fit for a header and a log line, else a new one (S122). */
export function requestIdOf(request: Pick<IncomingMessage, "headers">): string {
  const given = request.headers["x-request-id"];
  return typeof given === "string" && ID_PATTERN.test(given) ? given : randomUUID();
}

/** A fastify that hands bodies over as bytes and answers its own errors in the shape of S126. */
export function createFront(options: FrontOptions): FastifyInstance {
  const front = fastify({
    logger: false,
    bodyLimit: options.bodyBytesMax,
    requestTimeout: options.requestReadMs,
    genReqId: requestIdOf,
    requestIdHeader: false,
    forceCloseConnections: true,
    clientErrorHandler: answerBrokenRequest,
    http: {
      // Node looks for late requests this often; its own 30 s would add to the limit.
      connectionsCheckingInterval: Math.min(1_000, options.requestReadMs),
      // Node swaps the two limits when the one for the head is the larger one.
      headersTimeout: Math.min(60_000, options.requestReadMs),
    },
  });
  front.removeAllContentTypeParsers();
  front.addContentTypeParser("application/json", { parseAs: "buffer" }, (_request, body, done) => done(null, body));
  front.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
  });
  front.setErrorHandler((thrown, request, reply) => {
    const error = ours(thrown, options.bodyBytesMax, request.headers["content-type"]);
    const answer = errorBody(error, { requestId: request.id });
    options.onError(error, answer);
    return reply.code(answer.status).headers(answer.headers).send(answer.body);
  });
  front.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?")[0] ?? request.url;
    const hint = path === "/v1/responses" ? `${path} (use /v1/chat/completions)` : path.slice(0, 200);
    const answer = errorBody(new KvError("ROUTE_NOT_FOUND", { method: request.method, path: hint }), {
      requestId: request.id,
    });
    return reply.code(answer.status).headers(answer.headers).send(answer.body);
  });
  return front;
}

/** fastify's errors about bodies in our words; everything else stays as it is. */
function ours(thrown: unknown, bodyBytesMax: number, contentType: string | undefined): unknown {
  const code = thrown instanceof Error && "code" in thrown ? thrown.code : undefined;
  if (code === "FST_ERR_CTP_BODY_TOO_LARGE") return new KvError("BODY_TOO_LARGE", { limit: bodyBytesMax });
  if (code === "FST_ERR_CTP_INVALID_MEDIA_TYPE") {
    return new KvError("UNSUPPORTED_MEDIA_TYPE", { type: contentType?.slice(0, 100) ?? "no type" });
  }
  return thrown;
}

/** What node's HTTP parser refuses never becomes a request of fastify. */
function answerBrokenRequest(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const requestId = randomUUID();
  const cause =
    error.code === "ERR_HTTP_REQUEST_TIMEOUT"
      ? new KvError("BODY_TIMEOUT", {})
      : new KvError("INVALID_REQUEST", {
          param: "request",
          why: `it is not valid HTTP (${error.code ?? error.message})`,
        });
  const answer = errorBody(cause, { requestId });
  const body = JSON.stringify(answer.body);
  const head = [
    `HTTP/1.1 ${answer.status} ${answer.status === 408 ? "Request Timeout" : "Bad Request"}`,
    "content-type: application/json; charset=utf-8",
    `content-length: ${Buffer.byteLength(body)}`,
    `x-request-id: ${requestId}`,
    "connection: close",
  ];
  socket.end(`${head.join("\r\n")}\r\n\r\n${body}`);
}
