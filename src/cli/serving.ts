import { problemLine } from "../config/problems.ts";
import type { LogLevel } from "../config/settings.ts";
import type { Resolved } from "../config/worker_settings.ts";
import { createLogger, type Logger } from "../observability/log.ts";
import { ExitCode } from "./command.ts";

/** What waits for what does not work any more would wait for long. */
const UNUSABLE_DRAIN_MS = 30_000;

/** A running server as the command line sees it. */
export interface Serving {
  /** Rejects when the server will never be ready; it answers 503 until then. */
  readonly ready?: Promise<void>;
  /** Resolves, if ever, when it can't serve any more and its supervisor should start a new process; with the reason. */
  readonly unusable?: Promise<string>;
  /** Leaves the registry, finishes what is in flight, then stops (SIGTERM). */
  close(options?: { readonly drainMs?: number }): Promise<void>;
}

/** Says what took effect and what is odd about it (S9); fatal problems were thrown before. */
export function logConfiguration(log: Logger, resolved: Resolved<{ readonly logLevel: LogLevel }>): void {
  for (const problem of resolved.problems.mild) {
    if (problem.kind === "note") log.debug(problemLine(problem));
    else log.warn(problemLine(problem));
  }
  const values = Object.fromEntries(resolved.effective.map(({ key, value, origin }) => [key, { value, origin }]));
  log.info({ configuration: values }, "effective configuration");
}

export const serverLog = (name: string, level: LogLevel): Logger => createLogger({ name, level });

/**
 * Runs a server until SIGTERM or SIGINT, then closes it, which drains it. The second signal ends the process at once.
 * @returns the exit code
 */
export async function serveUntilSignal(log: Logger, start: () => Promise<Serving>): Promise<number> {
  let stop: () => void = () => {};
  const stopped = new Promise<void>((resolve) => {
    stop = resolve;
  });
  let signals = 0;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (++signals > 1) process.exit(ExitCode.failure);
    log.info({ signal }, "draining; a second signal ends at once");
    stop();
  };
  // A parent that started us with a channel (kvt demo) and is gone, whatever ended it, wants no orphan.
  const onOrphaned = (): void => onSignal("SIGTERM");
  process.on("SIGTERM", onSignal);
  process.on("SIGINT", onSignal);
  process.on("disconnect", onOrphaned);
  try {
    const server = await start();
    const neverReady = new Promise<never>((_resolve, reject) => server.ready?.catch(reject));
    let reason: string | null = null;
    const unusable = new Promise<string>((resolve) => server.unusable?.then(resolve));
    try {
      const ended = await Promise.race([stopped, neverReady, unusable]);
      if (typeof ended === "string") reason = ended;
    } finally {
      if (reason === null) await server.close();
    }
    if (reason === null) return ExitCode.ok;
    log.error({ reason }, "draining, to be started anew");
    await server.close({ drainMs: UNUSABLE_DRAIN_MS });
    return ExitCode.failure;
  } finally {
    process.off("SIGTERM", onSignal);
    process.off("SIGINT", onSignal);
    process.off("disconnect", onOrphaned);
  }
}
