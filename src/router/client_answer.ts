import type { ServerResponse } from "node:http";
import { KvError } from "../errors.ts";
import { type ErrorAnswer, sseHeaders } from "../openai/index.ts";
import type { AnswerHeaders, StreamTarget } from "./exchange.ts";

const NEWLINE = 0x0a;

/** The answer to one client: written once, as a whole or as a stream. Knows when the client leaves. */
export class ClientAnswer implements StreamTarget {
  readonly #response: ServerResponse;
  readonly #requestId: string;
  readonly #stallMs: number;
  readonly #gone = new AbortController();
  #status = 0;
  #pieces = 0;
  #endsEvent = true;
  #onBegin: (() => void) | undefined;

  /** @param stallMs how long a client may read nothing while a stream waits for it, before it counts as gone */
  constructor(response: ServerResponse, options: { readonly requestId: string; readonly stallMs: number }) {
    this.#response = response;
    this.#requestId = options.requestId;
    this.#stallMs = options.stallMs;
    response.once("close", () => {
      if (!response.writableFinished) this.#leave("the connection was closed");
    });
    response.on("error", () => this.#leave("the connection broke"));
  }

  /** Fires with CLIENT_GONE when the client left before it got everything. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Whether bytes of the answer were written: from then on nothing can be tried again. */
  get started(): boolean {
    return this.#status !== 0;
  }

  /** Status that was written; 0 before. */
  get status(): number {
    return this.#status;
  }

  /** Pieces of a stream so far. */
  get pieces(): number {
    return this.#pieces;
  }

  /** Runs `action` when the first byte of a stream is written. */
  whenBegun(action: () => void): void {
    this.#onBegin = action;
  }

  begin(headers: AnswerHeaders): void {
    const type = headers["content-type"];
    this.#head(200, { ...sseHeaders, ...(typeof type === "string" ? { "content-type": type } : {}) });
    this.#onBegin?.();
  }

  write(piece: Buffer): boolean {
    this.#pieces += 1;
    const { length } = piece;
    this.#endsEvent = piece[length - 1] === NEWLINE && (length < 2 ? false : piece[length - 2] === NEWLINE);
    return this.#response.write(piece);
  }

  whenWritable(resume: () => void): void {
    const timer = setTimeout(() => {
      this.#leave(`it read nothing for ${this.#stallMs} ms`);
      this.#response.destroy();
    }, this.#stallMs);
    const settle = (): void => {
      clearTimeout(timer);
      this.#response.off("drain", settle).off("close", settle);
      resume();
    };
    this.#response.on("drain", settle).on("close", settle);
  }

  /** A complete answer. */
  send(status: number, headers: Readonly<Record<string, string>>, body: string | Buffer): void {
    this.#head(status, { ...headers, "content-length": String(Buffer.byteLength(body)) });
    this.#response.end(body);
  }

  /** A stream that is known as a whole. */
  sendEvents(events: readonly string[]): void {
    this.begin({});
    this.#pieces += events.length;
    this.#response.end(events.join(""));
  }

  /** The regular end of a stream. */
  end(): void {
    this.#response.end();
  }

  /** The client's sight of a failure: an answer, or after the first byte one event and the end (S126). */
  fail(answer: ErrorAnswer): void {
    const body = JSON.stringify(answer.body);
    if (!this.started) {
      this.send(answer.status, { ...answer.headers, "content-type": "application/json; charset=utf-8" }, body);
      return;
    }
    // A piece may have ended inside an event: close it, so that the error stands in one of its own.
    this.#response.end(`${this.#endsEvent ? "" : "\n\n"}data: ${body}\n\n`);
  }

  #head(status: number, headers: Readonly<Record<string, string>>): void {
    this.#status = status;
    this.#response.writeHead(status, { ...headers, "x-request-id": this.#requestId });
  }

  #leave(why: string): void {
    if (!this.#gone.signal.aborted) this.#gone.abort(new KvError("CLIENT_GONE", { why }));
  }
}
