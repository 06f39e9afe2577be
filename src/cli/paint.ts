import type { Terminal } from "./command.ts";

export interface Paint {
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  green(text: string): string;
  yellow(text: string): string;
  cyan(text: string): string;
}

/** Colours on a terminal, plain text elsewhere and with NO_COLOR (https://no-color.org). */
export function paintFor({ stdout, env }: Pick<Terminal, "stdout" | "env">): Paint {
  const forced = (env.FORCE_COLOR ?? "") !== "" && env.FORCE_COLOR !== "0";
  const on = (env.NO_COLOR ?? "") === "" && (forced || ("isTTY" in stdout && stdout.isTTY === true));
  const wrap = (code: number) => (text: string) => (on ? `\x1b[${code}m${text}\x1b[0m` : text);
  return { bold: wrap(1), dim: wrap(2), red: wrap(31), green: wrap(32), yellow: wrap(33), cyan: wrap(36) };
}
