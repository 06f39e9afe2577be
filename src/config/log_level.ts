import { didYouMean } from "./nearest.ts";
import type { Problems } from "./problems.ts";
import { type LogLevel, logLevels } from "./settings.ts";

// trtllm-serve's names for levels that we name otherwise.
const seedNames: Readonly<Record<string, LogLevel>> = {
  internal_error: "fatal",
  warning: "warn",
  verbose: "debug",
};

const isLogLevel = (value: string): value is LogLevel => (logLevels as readonly string[]).includes(value);

/** A level by our name or trtllm-serve's, in any case. */
export function parseLogLevel(value: string, key: string, problems: Problems): LogLevel | undefined {
  const word = value.toLowerCase();
  if (isLogLevel(word)) return word;
  const seed = seedNames[word];
  if (seed) return seed;
  const names = [...logLevels, ...Object.keys(seedNames)];
  problems.add("error", key, `${value} is no log level: ${names.join(", ")}${didYouMean(word, names)}`);
  return undefined;
}
