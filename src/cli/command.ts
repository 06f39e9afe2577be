import type { Env } from "../config/environment.ts";
import { type FlagSpec, type FlagTable, flagName, placeholder } from "./arguments.ts";

/** Where a command reads and writes; tests give their own. */
export interface Terminal {
  readonly stdout: NodeJS.WriteStream | NodeJS.WritableStream;
  readonly stderr: NodeJS.WriteStream | NodeJS.WritableStream;
  readonly env: Env;
}

export interface Command {
  readonly name: string;
  /** After `kvt `: `serve MODEL [flags]`. */
  readonly usage: string;
  /** A paragraph, and examples ready to copy. */
  readonly about: string;
  readonly examples: readonly string[];
  readonly flags: FlagTable;
  /** @returns the exit code (S109) */
  run(argv: readonly string[], terminal: Terminal): Promise<number>;
}

export const ExitCode = { ok: 0, failure: 1, usage: 2, startTimeout: 3, bindFailure: 4 } as const;

const WIDTH = 96;
const LEFT = 34;

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/)) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === "" ? word : `${line} ${word}`;
    }
  }
  return [...lines, line];
}

function flagLines(name: string, spec: FlagSpec): string[] {
  const spellings = [spec.short ? `-${spec.short}` : "", flagName(name)].filter((spelling) => spelling !== "");
  const head = `  ${spellings.join(", ")} ${placeholder(spec)}`.trimEnd();
  const aliases = (spec.aliases ?? []).map(flagName).join(", ");
  const text = wrap(aliases === "" ? spec.help : `${spec.help} (also ${aliases})`, WIDTH - LEFT);
  const [first = "", ...rest] = text;
  const indented = rest.map((line) => " ".repeat(LEFT) + line);
  if (head.length >= LEFT - 1) return [head, " ".repeat(LEFT) + first, ...indented];
  return [head.padEnd(LEFT) + first, ...indented];
}

/** What `kvt COMMAND --help` prints. */
export function helpText(command: Command): string {
  const lines = [`Usage: kvt ${command.usage}`, "", ...wrap(command.about, WIDTH)];
  const flags = Object.entries(command.flags);
  if (flags.length > 0) lines.push("", "Flags (words joined by - or _, value after = or a space):");
  for (const [name, spec] of flags) lines.push(...flagLines(name, spec));
  lines.push(...flagLines("help", { kind: "boolean", short: "h", help: "print this" }));
  if (command.examples.length > 0) lines.push("", "Examples:", ...command.examples.map((example) => `  ${example}`));
  return `${lines.join("\n")}\n`;
}
