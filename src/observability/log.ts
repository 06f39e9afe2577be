import {
  type DestinationStream,
  destination,
  type LevelWithSilent,
  type Logger as PinoLogger,
  pino,
  stdTimeFunctions,
} from "pino";

/** Structured logger: `log.info({ requestId }, "sentence")`; `log.child({ ... })` binds fields. Errors go under the key `err`. */
export type Logger = PinoLogger;

export interface LoggerOptions {
  /** The process or room that speaks: `router`, `worker`, `transceiver`. */
  readonly name: string;
  /** Default: KVT_LOG_LEVEL, else `info`. */
  readonly level?: LevelWithSilent;
  /** Default: standard error, one readable line each on a terminal, one JSON object each otherwise. Tests give their own. */
  readonly stream?: DestinationStream;
}

const STDERR = 2;

/** The only place that writes logs. Standard error, because answers of commands belong to standard output. */
export function createLogger(options: LoggerOptions): Logger {
  return pino(
    {
      name: options.name,
      level: options.level ?? levelFromEnvironment(),
      base: { pid: process.pid },
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    options.stream ?? standardError(),
  );
}

const levels: readonly string[] = [
  "trace",
  "debug",
  "info",
  "warn",
  "error",
  "fatal",
  "silent",
] satisfies LevelWithSilent[];

const isLevel = (text: string): text is LevelWithSilent => levels.includes(text);

function levelFromEnvironment(): LevelWithSilent {
  const level = process.env.KVT_LOG_LEVEL?.toLowerCase() ?? "";
  return isLevel(level) ? level : "info";
}

let shared: DestinationStream | undefined;

/** One stream a process: every stream made by pino holds an exit listener. */
function standardError(): DestinationStream {
  shared ??= openStandardError();
  return shared;
}

function openStandardError(): DestinationStream {
  if (process.stderr.isTTY) return { write: (line) => process.stderr.write(readableLine(line)) };
  // Not sync: a reader that stops reading would stop the event loop with it. pino flushes at exit.
  return destination({ dest: STDERR, sync: false });
}

const colours: Readonly<Record<string, string>> = { warn: "\x1b[33m", error: "\x1b[31m", fatal: "\x1b[31m" };

/** `12:34:56.789 WARN router: sentence key=value`, out of one JSON line of pino. */
export function readableLine(line: string): string {
  const { time, level, name, msg, pid: _pid, err, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const clock = String(time).slice(11, 23);
  const label = String(level);
  const colour = colours[label] ?? "";
  const rest = Object.entries(fields).map(([key, value]) => ` ${key}=${valueText(value)}`);
  const head = `${clock} ${colour}${label.toUpperCase().padEnd(5)}${colour && "\x1b[0m"} ${String(name)}:`;
  return `${head} ${msg === undefined ? "" : String(msg)}${rest.join("")}${errorText(err)}\n`;
}

function valueText(value: unknown): string {
  return typeof value === "string" && !/[\s"=]/.test(value) ? value : JSON.stringify(value);
}

/** The one text that may take several lines: a stack is read by a person or not at all. */
function errorText(err: unknown): string {
  if (typeof err !== "object" || err === null) return "";
  const { stack, message } = err as { stack?: unknown; message?: unknown };
  return `\n${String(stack ?? message ?? JSON.stringify(err))}`;
}
