import type { ServerResponse } from "node:http";
import { SSE_DONE, sseHeaders } from "../openai/index.ts";

/**
 * One answer as server-sent events. While the client does not read, events wait here and leave as one write; they are bounded by the
 * answer's tokens, and the request itself runs on, so that a slow reader holds no KV blocks. One that reads nothing for `stallMs` is
 * cut off.
 */
export class EventStream {
  readonly #response: ServerResponse;
  readonly #requestId: string;
  readonly #stallMs: number;
  #pending: string[] = [];
  #stalled: NodeJS.Timeout | null = null;
  #ended = false;
  /** When the first event was written, on the steady clock. */
  firstByteMs: number | null = null;

  constructor(response: ServerResponse, options: { readonly requestId: string; readonly stallMs: number }) {
    this.#response = response;
    this.#requestId = options.requestId;
    this.#stallMs = options.stallMs;
    response.on("drain", () => this.#onDrain());
    response.on("close", () => this.#clear());
  }

  get started(): boolean {
    return this.#response.headersSent;
  }

  /** The first event sends the status line too: until then an error can still be an answer of its own. */
  send(event: string): void {
    if (this.#response.destroyed || this.#ended) return;
    this.firstByteMs ??= performance.now();
    if (!this.started) this.#response.writeHead(200, { ...sseHeaders, "x-request-id": this.#requestId });
    if (this.#stalled !== null) {
      this.#pending.push(event);
      return;
    }
    this.#write(event);
  }

  done(): void {
    this.send(SSE_DONE);
    this.#end();
  }

  /** Ends without `[DONE]`, after an error event. */
  fail(event: string): void {
    this.send(event);
    this.#end();
  }

  #end(): void {
    this.#ended = true;
    if (this.#stalled === null && !this.#response.destroyed) this.#response.end();
  }

  #write(text: string): void {
    if (this.#response.write(text)) return;
    this.#stalled = setTimeout(() => this.#response.destroy(), this.#stallMs);
  }

  #onDrain(): void {
    if (this.#stalled !== null) clearTimeout(this.#stalled);
    this.#stalled = null;
    const text = this.#pending.join("");
    this.#pending = [];
    if (text !== "") this.#write(text);
    if (this.#ended && this.#stalled === null && !this.#response.writableEnded) this.#response.end();
  }

  #clear(): void {
    if (this.#stalled !== null) clearTimeout(this.#stalled);
    this.#stalled = null;
    this.#pending = [];
  }
}
