import type { Dispatcher } from "undici";

/** One HTTP call to a worker. */
export interface Call {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
  /** Ends the call at once; its reason is what the caller gets. */
  readonly signal: AbortSignal;
  /** Longest pause between two pieces of the answer's body; 0: none of its own. */
  readonly silenceMs: number;
  /** Largest answer that is collected in memory. */
  readonly bytesMax: number;
  /** Runs when the request is about to be written, after any wait for a connection; what it throws ends the call. */
  readonly onSend?: () => void;
  /** Takes the body of a 200 answer piece by piece instead of collecting it. */
  readonly target?: StreamTarget;
}

/** Where a streamed answer goes. */
export interface StreamTarget {
  /** Comes once, with the first piece of the body: until then nothing was shown to anybody. */
  begin(headers: AnswerHeaders): void;
  /** @returns false when the target has enough for now */
  write(piece: Buffer): boolean;
  /** Calls `resume` once the target takes more. */
  whenWritable(resume: () => void): void;
}

export type AnswerHeaders = Readonly<Record<string, string | string[] | undefined>>;

/** A complete answer; `body` is empty when it went to the call's target. */
export interface Answer {
  readonly status: number;
  readonly headers: AnswerHeaders;
  readonly body: Buffer;
  readonly streamed: boolean;
}

/** Why there is no complete answer. `unreachable`: the request was never sent. */
export type ExchangeFault = "unreachable" | "lost" | "silent" | "nonsense" | "too_large";

export class ExchangeError extends Error {
  override readonly name = "ExchangeError";
  readonly fault: ExchangeFault;

  constructor(fault: ExchangeFault, why: string, options?: ErrorOptions) {
    super(why, options);
    this.fault = fault;
  }
}

/**
 * Sends one request and waits for the end of its answer. The pieces of a streamed answer are handed over as they come off the
 * socket; when the target is full the socket is not read, so that a slow client holds back the worker and not this process's memory.
 * @throws ExchangeError, or the reason of the call's signal, or what `onSend` threw
 */
export function exchange(dispatcher: Dispatcher, call: Call): Promise<Answer> {
  return new Promise((resolve, reject) => {
    if (call.signal.aborted) {
      reject(call.signal.reason);
      return;
    }
    const handler = new ExchangeHandler(call, resolve, reject);
    try {
      dispatcher.dispatch(
        {
          method: call.method,
          path: call.path,
          body: call.body ?? null,
          headers: call.headers ?? null,
          headersTimeout: 0,
          bodyTimeout: call.silenceMs,
        },
        handler,
      );
    } catch (error) {
      handler.onResponseError(undefined, asError(error));
    }
  });
}

const NO_BYTES = Buffer.alloc(0);

/** Budget per streamed piece: one call of `write`, no allocation, no await. */
class ExchangeHandler implements Dispatcher.DispatchHandler {
  readonly #call: Call;
  readonly #resolve: (answer: Answer) => void;
  readonly #reject: (error: unknown) => void;
  readonly #onAbort: () => void;
  readonly #resume: () => void;
  #controller: Dispatcher.DispatchController | undefined;
  #settled = false;
  #status = 0;
  #headers: AnswerHeaders = {};
  #streamed = false;
  #pieces: Buffer[] = [];
  #bytes = 0;

  constructor(call: Call, resolve: (answer: Answer) => void, reject: (error: unknown) => void) {
    this.#call = call;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#onAbort = () => this.#stop(call.signal.reason);
    this.#resume = () => this.#controller?.resume();
    call.signal.addEventListener("abort", this.#onAbort, { once: true });
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#settled) {
      // Ended while it waited for a connection: undici can't take it out of its queue, so it ends here.
      controller.abort(new Error("the call has ended"));
      return;
    }
    try {
      this.#call.onSend?.();
    } catch (error) {
      this.#stop(error);
    }
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number, headers: AnswerHeaders): void {
    if (status < 200) return;
    this.#status = status;
    this.#headers = headers;
  }

  onResponseData(controller: Dispatcher.DispatchController, piece: Buffer): void {
    if (this.#settled) return;
    const { target } = this.#call;
    if (target !== undefined && this.#status === 200) {
      if (!this.#streamed) {
        this.#streamed = true;
        target.begin(this.#headers);
      }
      if (!target.write(piece)) {
        controller.pause();
        target.whenWritable(this.#resume);
      }
      return;
    }
    this.#bytes += piece.length;
    if (this.#bytes > this.#call.bytesMax) {
      this.#stop(new ExchangeError("too_large", `the answer is larger than ${this.#call.bytesMax} bytes`));
      return;
    }
    this.#pieces.push(piece);
  }

  onResponseEnd(): void {
    if (!this.#settle()) return;
    const body = this.#pieces.length === 0 ? NO_BYTES : Buffer.concat(this.#pieces);
    this.#resolve({ status: this.#status, headers: this.#headers, body, streamed: this.#streamed });
  }

  onResponseError(_controller: Dispatcher.DispatchController | undefined, error: Error): void {
    if (!this.#settle()) return;
    this.#reject(new ExchangeError(this.#faultOf(error), reasonOf(error), { cause: error }));
  }

  #stop(reason: unknown): void {
    if (!this.#settle()) return;
    this.#controller?.abort(new Error("the call was stopped"));
    this.#reject(reason);
  }

  #settle(): boolean {
    if (this.#settled) return false;
    this.#settled = true;
    this.#call.signal.removeEventListener("abort", this.#onAbort);
    return true;
  }

  #faultOf(error: Error): ExchangeFault {
    if (this.#controller === undefined) return "unreachable";
    const code = codeOf(error);
    if (code === "UND_ERR_BODY_TIMEOUT" || code === "UND_ERR_HEADERS_TIMEOUT") return "silent";
    if (error.name === "HTTPParserError" || code === "UND_ERR_HEADERS_OVERFLOW") return "nonsense";
    return "lost";
  }
}

/** Of OpenSSL's verification and of Node's own check of the host name. */
const CERTIFICATE_CODE = /CERT|VERIFY_LEAF_SIGNATURE/;

const codeOf = (error: Error): string => ("code" in error && typeof error.code === "string" ? error.code : "");

/** `ECONNREFUSED`-like words say more than the texts around them; several addresses of a name fail as one AggregateError. */
function reasonOf(error: Error): string {
  const code = codeOf(error);
  const text = error.message === "" ? error.name : error.message;
  if (CERTIFICATE_CODE.test(code)) {
    return `its certificate is not accepted (${code}: ${text}); name its authority in NODE_EXTRA_CA_CERTS`;
  }
  return code === "" || code.startsWith("UND_") || text.includes(code) ? text : `${code} ${text}`;
}

const asError = (value: unknown): Error => (value instanceof Error ? value : new Error(String(value)));
