import { z } from "zod";
import { nearest } from "./nearest.ts";
import type { Problems } from "./problems.ts";
import { dotted, isYamlMap, type Path, type YamlSource, type YamlValue } from "./yaml_source.ts";

function unwrap(schema: unknown): unknown {
  let inner = schema;
  while (inner instanceof z.ZodOptional || inner instanceof z.ZodNullable) inner = inner.unwrap();
  return inner;
}

/** The names that a map at `path` may hold; empty when any name may stand there. */
export function knownKeys(schema: z.ZodType, path: Path): string[] {
  let here: unknown = unwrap(schema);
  for (const part of path) {
    if (here instanceof z.ZodObject) here = unwrap(here.shape[String(part)]);
    else if (here instanceof z.ZodArray) here = unwrap(here.element);
    else if (here instanceof z.ZodRecord) here = unwrap(here.valueType);
    else return [];
  }
  return here instanceof z.ZodObject ? Object.keys(here.shape) : [];
}

const show = (value: YamlValue | undefined): string => {
  // Infinity and NaN have no JSON.
  const text = typeof value === "number" ? String(value) : value === undefined ? "nothing" : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};

const kindOf = (value: YamlValue | undefined): string => {
  if (value === null || value === undefined) return "nothing";
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "a map" : `${show(value)} (a ${typeof value})`;
};

const wantedNames: Readonly<Record<string, string>> = {
  int: "an integer",
  number: "a number",
  string: "a string",
  boolean: "true or false",
  object: "a map of keys",
  record: "a map of keys",
  array: "a list",
};

function wrongType(expected: string, value: YamlValue | undefined): string {
  const wanted = wantedNames[expected] ?? expected;
  if (typeof value === "string") {
    const trimmed = value.trim();
    if ((expected === "int" || expected === "number") && /^[-+]?\d+(\.\d+)?$/.test(trimmed)) {
      return `${show(value)} is a string; write ${trimmed} without quotes`;
    }
    const word = trimmed.toLowerCase();
    if (expected === "boolean" && ["yes", "on", "true"].includes(word)) return `write true, not ${show(value)}`;
    if (expected === "boolean" && ["no", "off", "false"].includes(word)) return `write false, not ${show(value)}`;
  }
  if (expected === "int" && typeof value === "number") return `must be an integer, got ${value}`;
  if (expected === "string" && typeof value === "number") return `must be a string; put ${value} in quotes`;
  return `must be ${wanted}, got ${kindOf(value)}`;
}

const bound = (origin: string, limit: number | bigint, inclusive: boolean, least: boolean): string => {
  const unit = origin === "array" ? " entries" : origin === "string" ? " characters" : "";
  if (least) return inclusive ? `at least ${limit}${unit}` : `more than ${limit}${unit}`;
  return inclusive ? `at most ${limit}${unit}` : `less than ${limit}${unit}`;
};

function oneOf(values: readonly unknown[], value: YamlValue | undefined): string {
  const names = values.map(String);
  const near = typeof value === "string" ? nearest(value, names) : undefined;
  return `${show(value)} is not one of ${names.join(", ")}${near ? ` (did you mean ${near}?)` : ""}`;
}

function describe(issue: z.core.$ZodIssue, value: YamlValue | undefined): string {
  switch (issue.code) {
    case "invalid_type":
      return wrongType(issue.expected, value);
    case "too_small":
      return `must be ${bound(issue.origin, issue.minimum, issue.inclusive ?? true, true)}, got ${show(value)}`;
    case "too_big":
      return `must be ${bound(issue.origin, issue.maximum, issue.inclusive ?? true, false)}, got ${show(value)}`;
    case "invalid_value":
      return oneOf(issue.values, value);
    default:
      return issue.message;
  }
}

/**
 * Validates the whole file and reports every problem with its place.
 * @returns the parsed value, or undefined when something is wrong
 */
export function checkSchema<T>(schema: z.ZodType<T>, source: YamlSource, problems: Problems): T | undefined {
  const result = schema.safeParse(source.root);
  if (result.success) return result.data;
  for (const issue of result.error.issues) {
    const path = issue.path.map((part) => (typeof part === "symbol" ? String(part) : part));
    if (issue.code === "unrecognized_keys") {
      const known = knownKeys(schema, path);
      for (const key of issue.keys) unknownKey(key, path, known, source, problems);
      continue;
    }
    const value = source.get(path);
    // A missing required key: the parent's line is where it belongs.
    const place = value === undefined ? source.placeOfKey(path) : source.placeOfValue(path);
    const text = value === undefined && !source.has(path) ? "is required" : describe(issue, value);
    problems.add("error", dotted(path), text, place);
  }
  return undefined;
}

/** Reports `key`, which nobody knows, with the nearest known name. */
export function unknownKey(
  key: string,
  section: Path,
  known: readonly string[],
  source: YamlSource,
  problems: Problems,
  kind: "error" | "warning" = "error",
): void {
  const near = nearest(key, known);
  const where = section.length === 0 ? "" : ` of ${dotted(section)}`;
  const advice = near
    ? `did you mean ${near}?`
    : known.length > 0 && known.length <= 12
      ? `known keys: ${known.join(", ")}`
      : "remove it";
  const path = [...section, key];
  problems.add(kind, dotted(path), `unknown key${where}; ${advice}`, source.placeOfKey(path));
}

/** Visits every scalar of the tree. */
export function eachScalar(root: YamlValue, visit: (path: Path, value: YamlValue) => void, path: Path = []): void {
  if (Array.isArray(root)) for (const [i, item] of root.entries()) eachScalar(item, visit, [...path, i]);
  else if (isYamlMap(root)) for (const [key, item] of Object.entries(root)) eachScalar(item, visit, [...path, key]);
  else visit(path, root);
}
