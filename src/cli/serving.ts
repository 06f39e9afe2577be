import { problemLine } from "../config/problems.ts";
import type { LogLevel } from "../config/settings.ts";
import type { Resolved } from "../config/worker_settings.ts";
import { createLogger, type Logger } from "../observability/log.ts";
import { ExitCode } from "./command.ts";

/** A running server as the command line sees it. */
export interface Serving {
  /** Rejects when the server will never be ready; it answers 503 until then. */
  readonly ready?: Promise<void>;
  /** Leaves the registry, finishes what is in flight, then stops (SIGTERM). */
  close(): Promise<void>;
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
    try {
      await Promise.race([stopped, neverReady]);
    } finally {
      await server.close();
    }
    return ExitCode.ok;
  } finally {
    process.off("SIGTERM", onSignal);
    process.off("SIGINT", onSignal);
    process.off("disconnect", onOrphaned);
  }
}
