import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type ErrorCode, type ErrorDetails, KvError } from "../../errors.ts";
import type { EncodeOptions } from "./tokenizer.ts";
import type { Vocabulary } from "./vocabulary.ts";

export interface TokenizeJob {
  readonly vocabulary: Vocabulary;
  readonly text: string;
  readonly options: EncodeOptions;
}

/** To a thread. The vocabulary comes once a thread, with the first job that needs it. */
export interface ThreadRequest {
  readonly vocabularyId: number;
  readonly vocabulary?: Vocabulary;
  readonly text: string;
  readonly options: EncodeOptions;
}

/** From a thread. */
export type ThreadReply =
  | { readonly ids: Uint32Array }
  | { readonly code: ErrorCode; readonly details: KvError["details"] };

const QUEUED_JOBS_MAX = 64;
/** Far above what the longest allowed text takes (about 1 µs a character). */
const JOB_MS_MAX = 60_000;
const THREADS = Math.min(2, Math.max(1, availableParallelism() - 1));
const HEAP_MB_MAX = 2048;

interface Pending {
  readonly job: TokenizeJob;
  readonly resolve: (ids: number[]) => void;
  readonly reject: (error: unknown) => void;
}

interface Thread {
  readonly worker: Worker;
  readonly knows: Set<number>;
  busy?: { readonly pending: Pending; readonly timer: NodeJS.Timeout };
}

/** Started with the first long text; idle threads don't keep the process alive. */
class TokenizerPool {
  readonly #threads: Thread[] = [];
  readonly #queue: Pending[] = [];
  readonly #ids = new WeakMap<Vocabulary, number>();
  #nextId = 0;

  run(job: TokenizeJob, signal: AbortSignal | undefined): Promise<number[]> {
    signal?.throwIfAborted();
    if (this.#queue.length >= QUEUED_JOBS_MAX) {
      throw new KvError("TOKENIZER_BUSY", { queued: this.#queue.length });
    }
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        const at = this.#queue.indexOf(pending);
        if (at !== -1) this.#queue.splice(at, 1);
        reject(signal?.reason);
      };
      const settle = (): void => signal?.removeEventListener("abort", onAbort);
      const pending: Pending = {
        job,
        resolve: (ids) => {
          settle();
          resolve(ids);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#queue.push(pending);
      this.#next();
    });
  }

  #next(): void {
    while (this.#queue.length > 0) {
      const thread = this.#threads.find(({ busy }) => busy === undefined) ?? this.#start();
      const pending = thread === undefined ? undefined : this.#queue.shift();
      if (thread === undefined || pending === undefined) return;
      this.#give(thread, pending);
    }
  }

  #give(thread: Thread, pending: Pending): void {
    const { vocabulary, text, options } = pending.job;
    const vocabularyId = this.#idOf(vocabulary);
    const request: ThreadRequest = {
      vocabularyId,
      ...(thread.knows.has(vocabularyId) ? {} : { vocabulary }),
      text,
      options,
    };
    thread.knows.add(vocabularyId);
    const timer = setTimeout(() => this.#end(thread, `no answer within ${JOB_MS_MAX} ms`), JOB_MS_MAX);
    thread.busy = { pending, timer };
    thread.worker.ref();
    thread.worker.postMessage(request);
  }

  #start(): Thread | undefined {
    if (this.#threads.length >= THREADS) return undefined;
    const worker = new Worker(new URL("./tokenizer_thread.js", import.meta.url), {
      name: "kvt-tokenizer",
      // Not the process's own: options such as --input-type are refused in a thread.
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MB_MAX },
    });
    const thread: Thread = { worker, knows: new Set() };
    worker.on("message", (reply: ThreadReply) => this.#answer(thread, reply));
    worker.on("error", (error) => this.#end(thread, error instanceof Error ? error.message : String(error)));
    worker.on("exit", (code) => this.#end(thread, `its thread ended with code ${code}`));
    worker.unref();
    this.#threads.push(thread);
    return thread;
  }

  #answer(thread: Thread, reply: ThreadReply): void {
    const busy = this.#release(thread);
    if ("ids" in reply) busy?.pending.resolve(Array.from(reply.ids));
    else busy?.pending.reject(new KvError(reply.code, reply.details as ErrorDetails<ErrorCode>));
    this.#next();
  }

  /** The thread is lost or stuck: its job fails, the next one gets a fresh thread. */
  #end(thread: Thread, why: string): void {
    const at = this.#threads.indexOf(thread);
    if (at === -1) return;
    this.#threads.splice(at, 1);
    const busy = this.#release(thread);
    void thread.worker.terminate();
    busy?.pending.reject(new KvError("TOKENIZER_FAILED", { chars: busy.pending.job.text.length, why }));
    this.#next();
  }

  #release(thread: Thread): Thread["busy"] {
    const { busy } = thread;
    clearTimeout(busy?.timer);
    delete thread.busy;
    thread.worker.unref();
    return busy;
  }

  #idOf(vocabulary: Vocabulary): number {
    const known = this.#ids.get(vocabulary);
    if (known !== undefined) return known;
    this.#ids.set(vocabulary, this.#nextId);
    return this.#nextId++;
  }
}

/** Node 20 runs no TypeScript in a thread: only the built package has the pool. */
const threadsRun = import.meta.url.endsWith(".js");
let pool: TokenizerPool | undefined;

/**
 * Tokenises in one of the process's threads.
 * @returns undefined when this runs from TypeScript sources, where the caller does the work itself
 * @throws KvError TOKENIZER_BUSY, TOKENIZER_FAILED, and what Tokenizer.encode throws; the signal's reason
 */
export async function tokenizeInThread(job: TokenizeJob, signal?: AbortSignal): Promise<number[] | undefined> {
  if (!threadsRun) return undefined;
  pool ??= new TokenizerPool();
  return pool.run(job, signal);
}
