import { setTimeout as sleep } from "node:timers/promises";
import { ZodError } from "zod";
import type { Clock } from "../clock.ts";
import type { Logger } from "../observability/log.ts";
import { exchangeClockOffset } from "./clock_offset.ts";
import { ExchangeError, exchange } from "./exchange.ts";
import { isTimeoutReason, joinSignals } from "./joined_signal.ts";
import { prepareWorker, UnusableWorker } from "./prepare_worker.ts";
import type { UpstreamWorker } from "./upstream_worker.ts";

export interface ProbeTimes {
  /** Between two probes of one worker (S137). */
  readonly intervalMs: number;
  /** Limit of one probe (S65). */
  readonly timeoutMs: number;
  /** Between two exchanges of the clock offset (trtllm-protocol.md section 1.5). */
  readonly clockOffsetMs: number;
}

export const defaultProbeTimes: ProbeTimes = { intervalMs: 3_000, timeoutMs: 5_000, clockOffsetMs: 600_000 };

/** A probe that only timed out may have met a busy moment; two in a row have not (S65). */
const TIMEOUTS_TO_DOWN = 2;
const BYTES_MAX = 64 * 1024;

export interface ProberOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly times: ProbeTimes;
  /** Whether a worker is of no use without a `ctx_info_endpoint` in its /server_info. */
  readonly mustNameEndpoint: (worker: UpstreamWorker) => boolean;
  /** Called after each change of a worker's state. */
  readonly onChange: () => void;
}

/** Keeps the state of every listed worker true: brings it in when it is healthy and prepared, takes it out when it is not. */
export class Prober {
  readonly #options: ProberOptions;
  readonly #ended = new AbortController();
  readonly #naps = new Map<UpstreamWorker, AbortController>();
  readonly #loops: Promise<void>[] = [];

  constructor(options: ProberOptions) {
    this.#options = options;
  }

  start(workers: readonly UpstreamWorker[]): void {
    for (const worker of workers) this.#loops.push(this.#watch(worker));
  }

  /** A request found the worker failing: probe it now instead of at the next turn. */
  suspect(worker: UpstreamWorker): void {
    this.#naps.get(worker)?.abort();
  }

  async stop(): Promise<void> {
    this.#ended.abort();
    for (const nap of this.#naps.values()) nap.abort();
    await Promise.all(this.#loops);
  }

  async #watch(worker: UpstreamWorker): Promise<void> {
    const { clock, times } = this.#options;
    let timeouts = 0;
    let offsetAtMs = 0;
    while (!this.#ended.signal.aborted) {
      const limit = joinSignals([this.#ended.signal], times.timeoutMs);
      const { signal } = limit;
      try {
        await this.#probe(worker, signal);
        timeouts = 0;
        if (worker.state !== "ready") {
          const mustNameEndpoint = this.#options.mustNameEndpoint(worker);
          worker.becameReady(await prepareWorker(worker, { clock, signal, mustNameEndpoint }));
          worker.breaker.succeeded();
          offsetAtMs = clock.nowMs();
          this.#changed(worker);
        } else if (clock.nowMs() - offsetAtMs >= times.clockOffsetMs) {
          await exchangeClockOffset(worker.control, { clock, signal });
          offsetAtMs = clock.nowMs();
        }
      } catch (error) {
        if (this.#ended.signal.aborted) return;
        timeouts = isTimeout(error) ? timeouts + 1 : 0;
        if (worker.state !== "ready" || !isTimeout(error) || timeouts >= TIMEOUTS_TO_DOWN) this.#failed(worker, error);
      } finally {
        limit.dispose();
      }
      await this.#nap(worker);
    }
  }

  async #probe(worker: UpstreamWorker, signal: AbortSignal): Promise<void> {
    const call = { method: "GET", path: "/health", signal, silenceMs: 0, bytesMax: BYTES_MAX } as const;
    const answer = await exchange(worker.control, call).catch((error: unknown) => {
      // The worker may have closed an idle connection at this very moment: that says nothing about its health.
      if (error instanceof ExchangeError && error.fault === "lost") return exchange(worker.control, call);
      throw error;
    });
    if (answer.status !== 200) {
      const text = answer.body.toString("utf8", 0, 200).trim();
      throw new UnusableWorker(`GET /health answered ${answer.status}${text === "" ? "" : `: ${text}`}`);
    }
    worker.lastSeenMs = this.#options.clock.nowMs();
  }

  #failed(worker: UpstreamWorker, error: unknown): void {
    const usable = !(error instanceof UnusableWorker || error instanceof ZodError || error instanceof SyntaxError);
    const state = usable ? "down" : "refused";
    const reason = this.#reasonOf(error);
    const isNews = worker.state !== state || worker.reason !== reason;
    worker.becameUnready(worker.state === "starting" && usable ? "starting" : state, reason, usable);
    if (isNews) this.#changed(worker);
  }

  #reasonOf(error: unknown): string {
    if (isTimeout(error)) return `no answer within ${this.#options.times.timeoutMs} ms`;
    if (error instanceof ZodError) return `its answers have another shape than expected: ${error.issues[0]?.message}`;
    return error instanceof Error ? error.message : String(error);
  }

  #changed(worker: UpstreamWorker): void {
    const fields = { worker: worker.url, roles: [...worker.roles], state: worker.state, reason: worker.reason };
    if (worker.state === "ready") this.#options.log.info(fields, "worker is ready");
    else if (worker.state === "starting") this.#options.log.debug(fields, "waiting for worker");
    else this.#options.log.warn(fields, "worker is out of use");
    this.#options.onChange();
  }

  async #nap(worker: UpstreamWorker): Promise<void> {
    if (this.#ended.signal.aborted) return;
    const nap = new AbortController();
    this.#naps.set(worker, nap);
    // A nap cut short is the point of `suspect` and `stop`.
    await sleep(this.#options.times.intervalMs, undefined, { signal: nap.signal }).catch(() => undefined);
  }
}

const isTimeout = (error: unknown): boolean =>
  isTimeoutReason(error) || (error instanceof ExchangeError && error.fault === "silent");
