/** Server-sent events as OpenAI streams use them: `data:` lines, one JSON value an event, `[DONE]` at the end. */
export const SSE_DONE = "data: [DONE]\n\n";

export const sseHeaders = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache",
  "x-accel-buffering": "no",
} as const;

/** JSON text never holds a raw line break, so one `data:` line carries it. */
export const sseEvent = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;

/** Longest event a client of ours accepts; one token's chunk is far below. */
const EVENT_CHARS_MAX = 16 << 20;

/** Takes the bytes of an event stream in any pieces and gives the `data` of each complete event. */
export class SseParser {
  readonly #decoder = new TextDecoder("utf-8");
  #rest = "";
  #data: string[] = [];
  #afterCarriageReturn = false;

  /** @throws RangeError when one line grows beyond 16 Mi characters */
  push(bytes: Uint8Array): string[] {
    const events: string[] = [];
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    let from = 0;
    for (;;) {
      if (this.#afterCarriageReturn && from < this.#rest.length) {
        if (this.#rest.charCodeAt(from) === 0x0a) from++;
        this.#afterCarriageReturn = false;
      }
      const end = lineEnd(this.#rest, from);
      if (end === -1) break;
      this.#line(this.#rest.slice(from, end), events);
      this.#afterCarriageReturn = this.#rest.charCodeAt(end) === 0x0d;
      from = end + 1;
    }
    this.#rest = this.#rest.slice(from);
    if (this.#rest.length > EVENT_CHARS_MAX) throw new RangeError(`event longer than ${EVENT_CHARS_MAX} characters`);
    return events;
  }

  #line(line: string, events: string[]): void {
    if (line === "") {
      if (this.#data.length > 0) events.push(this.#data.join("\n"));
      this.#data = [];
      return;
    }
    if (!line.startsWith("data:")) return;
    this.#data.push(line.startsWith("data: ") ? line.slice(6) : line.slice(5));
  }
}

function lineEnd(text: string, from: number): number {
  const breaks = /[\r\n]/g;
  breaks.lastIndex = from;
  return breaks.exec(text)?.index ?? -1;
}
