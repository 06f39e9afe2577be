import type { Candidate } from "../config/chosen.ts";
import { nearest } from "../config/nearest.ts";
import { KvError } from "../errors.ts";

interface FlagText {
  /** Other long names of the same flag, with `_` between words. */
  readonly aliases?: readonly string[];
  /** One letter, for `-c`. */
  readonly short?: string;
  /** For `--help`: what it does, default included. */
  readonly help: string;
  /** Word that stands for the value in `--help`; default by kind. */
  readonly value?: string;
}

/** One long flag; its name in the table is canonical and has `_` between words. */
export type FlagSpec = FlagText &
  (
    | { readonly kind: "string" }
    /** May be given so many times. */
    | { readonly kind: "strings"; readonly max: number }
    | { readonly kind: "boolean" }
    | { readonly kind: "integer" | "number"; readonly min?: number; readonly max?: number }
    | { readonly kind: "choice"; readonly choices: Readonly<Record<string, string>> }
  );

export type FlagTable = Readonly<Record<string, FlagSpec>>;

type ValueOf<Spec extends FlagSpec> = Spec extends { readonly kind: "boolean" }
  ? boolean
  : Spec extends { readonly kind: "integer" | "number" }
    ? number
    : Spec extends { readonly choices: Readonly<Record<string, infer Value>> }
      ? Value
      : Spec extends { readonly kind: "strings" }
        ? readonly string[]
        : string;

/** The values given, by canonical name; `origin` is the flag as the user wrote it. */
export type GivenFlags<Table extends FlagTable> = { readonly [Name in keyof Table]?: Candidate<ValueOf<Table[Name]>> };

export interface ParsedArguments<Table extends FlagTable> {
  readonly flags: GivenFlags<Table>;
  readonly positionals: readonly string[];
  /** `--help` or `-h` stood somewhere: nothing else counts then. */
  readonly help: boolean;
}

const canonical = (name: string): string => name.toLowerCase().replaceAll("-", "_");
const looksLikeFlag = (word: string): boolean => /^-[^\d.]/.test(word) && word !== "-";

/** Names of a table with their spellings in `--help`: words joined by `-`, as most programs write them; `_` works as well. */
export const flagName = (name: string): string => `--${name}`;

class Parser<Table extends FlagTable> {
  readonly #table: Table;
  readonly #words: string[];
  readonly #wrong: string[] = [];
  readonly #given = new Map<string, Candidate<unknown>>();
  readonly #names = new Map<string, string>();
  readonly #shorts = new Map<string, string>();

  constructor(table: Table, argv: readonly string[]) {
    this.#table = table;
    this.#words = [...argv];
    for (const [name, spec] of Object.entries(table)) {
      for (const known of [name, ...(spec.aliases ?? [])]) this.#names.set(known, name);
      if (spec.short) this.#shorts.set(spec.short, name);
    }
  }

  parse(): ParsedArguments<Table> & { readonly wrong: readonly string[] } {
    const positionals: string[] = [];
    let help = false;
    for (let word = this.#words.shift(); word !== undefined; word = this.#words.shift()) {
      if (word === "--") {
        positionals.push(...this.#words.splice(0));
      } else if (word === "--help" || word === "-h") {
        help = true;
      } else if (word.startsWith("--")) {
        this.#long(word);
      } else if (looksLikeFlag(word)) {
        this.#short(word);
      } else {
        positionals.push(word);
      }
    }
    const flags = Object.fromEntries(this.#given) as GivenFlags<Table>;
    return { flags, positionals, help, wrong: this.#wrong };
  }

  #long(word: string): void {
    const equals = word.indexOf("=");
    const written = equals === -1 ? word : word.slice(0, equals);
    const name = this.#names.get(canonical(written.slice(2)));
    if (name === undefined) {
      const near = nearest(written.slice(2), this.#names.keys());
      this.#wrong.push(`there is no ${written}${near ? `; did you mean ${flagName(near)}?` : ""}`);
      // Its value, if it has one, would be taken for a positional and be reported on top.
      if (equals === -1 && this.#words[0] !== undefined && !looksLikeFlag(this.#words[0])) this.#words.shift();
      return;
    }
    this.#take(name, written, equals === -1 ? undefined : word.slice(equals + 1));
  }

  #short(word: string): void {
    const name = this.#shorts.get(word.slice(1, 2));
    if (name === undefined) {
      const known = [...this.#shorts.keys()].map((letter) => `-${letter}`).join(", ");
      this.#wrong.push(`there is no ${word.slice(0, 2)}${known ? `; short flags are ${known}` : ""}`);
      return;
    }
    const rest = word.slice(2);
    this.#take(name, word.slice(0, 2), rest === "" ? undefined : rest.replace(/^=/, ""));
  }

  #take(name: string, written: string, inline: string | undefined): void {
    const spec = this.#table[name] as FlagSpec;
    let text = inline;
    if (text === undefined && spec.kind === "boolean") text = "true";
    if (text === undefined) {
      const next = this.#words[0];
      if (next === undefined || looksLikeFlag(next)) {
        this.#wrong.push(`${written} needs a value: ${written} ${placeholder(spec)}`);
        return;
      }
      text = this.#words.shift() ?? "";
    }
    const before = this.#given.get(name);
    if (before !== undefined && spec.kind !== "strings") {
      this.#wrong.push(`${written} is given twice`);
      return;
    }
    const value = convert(spec, text);
    if (typeof value === "object") {
      this.#wrong.push(`${written}: ${value.wrong}`);
    } else if (spec.kind === "strings") {
      const values = [...((before?.value as readonly string[] | undefined) ?? []), String(value)];
      if (values.length > spec.max) this.#wrong.push(`${written} is given ${values.length} times, ${spec.max} at most`);
      this.#given.set(name, { value: values, origin: written });
    } else {
      this.#given.set(name, { value, origin: written });
    }
  }
}

const booleans: Readonly<Record<string, boolean>> = { true: true, "1": true, false: false, "0": false };

function convert(spec: FlagSpec, text: string): string | number | boolean | { readonly wrong: string } {
  switch (spec.kind) {
    case "string":
    case "strings":
      return text === "" ? { wrong: "the value is empty" } : text;
    case "boolean":
      return booleans[text.toLowerCase()] ?? { wrong: `${JSON.stringify(text)} is neither true nor false` };
    case "choice": {
      const entry = Object.entries(spec.choices).find(([word]) => word.toLowerCase() === text.toLowerCase());
      if (entry) return entry[1];
      const near = nearest(text, Object.keys(spec.choices));
      const known = Object.keys(spec.choices).join(", ");
      return { wrong: `${text} is not one of ${known}${near ? ` (did you mean ${near}?)` : ""}` };
    }
    default:
      return convertNumber(spec, text);
  }
}

function convertNumber(
  spec: { readonly kind: "integer" | "number"; readonly min?: number; readonly max?: number },
  text: string,
): number | { readonly wrong: string } {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) return { wrong: `${JSON.stringify(text)} is no number` };
  if (spec.kind === "integer" && !Number.isSafeInteger(value)) return { wrong: `${text} is no integer` };
  if (spec.min !== undefined && value < spec.min) return { wrong: `${text} is below ${spec.min}` };
  if (spec.max !== undefined && value > spec.max) return { wrong: `${text} is above ${spec.max}` };
  return value;
}

export const placeholder = (spec: FlagSpec): string => {
  if (spec.value) return spec.value;
  if (spec.kind === "choice") return Object.keys(spec.choices).join("|");
  return spec.kind === "string" || spec.kind === "strings" ? "TEXT" : spec.kind === "boolean" ? "" : "N";
};

/**
 * Reads a command line: flags with `-` or `_` between words, with `=` or a space (system.md section 9).
 * @throws KvError USAGE that lists everything wrong at once
 */
export function parseArguments<const Table extends FlagTable>(
  command: string,
  table: Table,
  argv: readonly string[],
): ParsedArguments<Table> {
  const { wrong, ...parsed } = new Parser(table, argv).parse();
  if (wrong.length > 0 && !parsed.help) throw usage(command, wrong.join("\n"));
  return parsed;
}

/** A mistake on the command line, exit code 2. */
export const usage = (command: string, what: string): KvError =>
  new KvError("USAGE", { what, remedy: `see kvt ${command === "" ? "" : `${command} `}--help` });
