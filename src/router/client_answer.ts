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
  #started = false;
  #pieces = 0;
  #endsEvent = true;
  #onFirstByte: (() => void) | undefined;
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

  /** Whether bytes of a worker's last hop were written: from then on nothing can be tried again. */
  get started(): boolean {
    return this.#started;
  }

  /** Status that was written; 0 before. */
  get status(): number {
    return this.#status;
  }

  /** Pieces of a stream so far. */
  get pieces(): number {
    return this.#pieces;
  }

  /** Runs `firstByte` when the client gets the first byte of a stream, `begun` when a worker's stream begins: not before. */
  watch({ firstByte, begun }: { readonly firstByte: () => void; readonly begun: () => void }): void {
    this.#onFirstByte = firstByte;
    this.#onBegin = begun;
  }

  /** An event of the stream before any worker's: whatever serves the rest can still be tried again. */
  preface(event: string): void {
    this.#streamHead({});
    this.#pieces += 1;
    this.#response.write(event);
  }

  begin(headers: AnswerHeaders): void {
    this.#started = true;
    const type = headers["content-type"];
    this.#streamHead(typeof type === "string" ? { "content-type": type } : {});
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
    this.#started = true;
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
    if (this.#status === 0) {
      this.send(answer.status, { ...answer.headers, "content-type": "application/json; charset=utf-8" }, body);
      return;
    }
    // A piece may have ended inside an event: close it, so that the error stands in one of its own.
    this.#response.end(`${this.#endsEvent ? "" : "\n\n"}data: ${body}\n\n`);
  }

  #streamHead(headers: Readonly<Record<string, string>>): void {
    if (this.#status !== 0) return;
    this.#head(200, { ...sseHeaders, ...headers });
    this.#onFirstByte?.();
  }

  #head(status: number, headers: Readonly<Record<string, string>>): void {
    this.#status = status;
    this.#response.writeHead(status, { ...headers, "x-request-id": this.#requestId });
  }

  #leave(why: string): void {
    if (!this.#gone.signal.aborted) this.#gone.abort(new KvError("CLIENT_GONE", { why }));
  }
}
