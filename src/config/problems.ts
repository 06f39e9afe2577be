import { KvError } from "../errors.ts";

/** A position in a text file; line and column count from 1. */
export interface Place {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** The whole line, for the message. */
  readonly text: string;
}

/**
 * `error`: the value is wrong. `not_built`: the value is right, but this version can't do it yet or never will. `warning`: it
 * works, but probably not as meant. `note`: for the curious (log level debug).
 */
export type ProblemKind = "error" | "not_built" | "warning" | "note";

export interface Problem {
  readonly kind: ProblemKind;
  /** Dotted key, flag (`--port`) or variable it is about; empty for the file as a whole. */
  readonly key: string;
  readonly text: string;
  readonly place?: Place;
}

export const isFatal = (problem: Problem): boolean => problem.kind === "error" || problem.kind === "not_built";

const WIDEST_LINE = 120;

/** The line with a caret under the column; long lines are cut around it, tabs keep their width. */
function quote(place: Place): string {
  const start = place.column > WIDEST_LINE ? place.column - WIDEST_LINE / 2 : 0;
  const shown = place.text.slice(start, start + WIDEST_LINE);
  const indent = shown.slice(0, Math.max(0, place.column - 1 - start)).replace(/[^\t]/g, " ");
  const margin = `${place.line} | `;
  return `  ${margin}${shown}\n  ${" ".repeat(margin.length - 2)}| ${indent}^`;
}

const whereOf = ({ place }: Problem): string => (place ? `${place.file}:${place.line}:${place.column}: ` : "");
const whatOf = ({ key, text }: Problem): string => (key === "" ? text : `${key}: ${text}`);

/** One line without the kind, for a log whose level says it. */
export const problemLine = (problem: Problem): string => whereOf(problem) + whatOf(problem);

/** `file:line:column: error: key: text`, then the line itself. */
export function renderProblem(problem: Problem): string {
  const { place } = problem;
  const kind = problem.kind === "not_built" ? "error" : problem.kind;
  const line = place && place.text.trim() !== "" ? `\n${quote(place)}` : "";
  return `${whereOf(problem)}${kind}: ${whatOf(problem)}${line}`;
}

const byPlace = (left: Problem, right: Problem): number => {
  if (left.place && right.place && left.place.file === right.place.file) {
    return left.place.line - right.place.line || left.place.column - right.place.column;
  }
  return 0;
};

/** Collects what is wrong, so that a start reports everything at once (S6). */
export class Problems {
  readonly #list: Problem[] = [];

  add(kind: ProblemKind, key: string, text: string, place?: Place): void {
    this.#list.push(place ? { kind, key, text, place } : { kind, key, text });
  }

  get all(): readonly Problem[] {
    return this.#list;
  }

  get fatal(): readonly Problem[] {
    return this.#list.filter(isFatal).sort(byPlace);
  }

  /** Warnings and notes. */
  get mild(): readonly Problem[] {
    return this.#list.filter((problem) => !isFatal(problem)).sort(byPlace);
  }

  /** @throws KvError CONFIG_INVALID when anything fatal was found; its message lists all of it */
  throwIfFatal(): void {
    const fatal = this.fatal;
    if (fatal.length === 0) return;
    throw new KvError("CONFIG_INVALID", { count: fatal.length, problems: fatal.map(renderProblem).join("\n") });
  }
}
