import { KvError } from "../errors.ts";
import { parseExact } from "./exact_integers.ts";
import { hasMoreStructures, topLevelValueSpan } from "./json_scan.ts";

/** A JSON object as it came over HTTP; integers above 2^53 under EXACT_KEYS are bigint. */
export type JsonObject = Record<string, unknown>;

/** Top-level keys that carry 64-bit integers; `ctx_request_id` stands there in POST /kv/release. */
const EXACT_KEYS = ["disaggregated_params", "seed", "ctx_request_id"];

/** Largest value that is read a second time for its integers; opaque states are 2 KiB and a little a rank (design.md section 6). */
const EXACT_BYTES_MAX = 1 << 20;
/** Objects, lists and fields in a body. 64 MB of `[` would be gigabytes once parsed; 4,096 messages of 64 parts are below a million. */
const STRUCTURES_MAX = 1 << 20;
/** Texts too short to hold too many structures are not scanned for them. */
const SCANNED_CHARS_MIN = STRUCTURES_MAX;

const utf8 = new TextDecoder("utf-8", { fatal: true });

/**
 * Reads a request or reply body. The bulk goes through JSON.parse; only where one of EXACT_KEYS, or
 * `disaggregated_params` in `choices[]` of a reply, holds an integer that a JS number can't carry is that one value read again, exactly.
 * @throws KvError BAD_JSON
 */
export function parseBody(bytes: Uint8Array | string): JsonObject {
  const text = typeof bytes === "string" ? bytes : decodeText(bytes);
  if (text.length > SCANNED_CHARS_MIN && hasMoreStructures(text, STRUCTURES_MAX)) {
    throw new KvError("BAD_JSON", { why: `it holds more than ${STRUCTURES_MAX} objects, lists and fields` });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new KvError("BAD_JSON", { why: shortReason(error) }, { cause: error });
  }
  if (!isObject(value)) throw new KvError("BAD_JSON", { why: `it is ${nameOf(value)}, not an object` });
  for (const key of EXACT_KEYS) if (holdsUnsafeInteger(value[key])) value[key] = readExact(text, key);
  const choices: unknown = value.choices;
  if (Array.isArray(choices) && choices.some((choice) => isObject(choice) && hasUnsafeParams(choice))) {
    const exact = readExact(text, "choices") as unknown[];
    for (const [index, choice] of choices.entries()) {
      if (isObject(choice) && hasUnsafeParams(choice)) {
        choice.disaggregated_params = (exact[index] as JsonObject).disaggregated_params;
      }
    }
  }
  return value;
}

/**
 * Writes a body; bigint becomes a bare integer wherever `parseBody` may have made one. Keys with an undefined value are left out.
 * @throws KvError INVALID_REQUEST when it is nested too deeply to be written
 */
export function stringifyBody(value: JsonObject): string {
  const parts: string[] = [];
  for (const [key, entry] of Object.entries(value)) {
    if (entry === undefined) continue;
    parts.push(`${JSON.stringify(key)}:${stringifyEntry(key, entry)}`);
  }
  return `{${parts.join(",")}}`;
}

/** A list of objects in which any integer may be a bigint, as GET /perf_metrics answers it. */
export const stringifyList = (list: readonly JsonObject[]): string => exactJson(list);

/** Largest list that is read exactly: 10^4 records of 2 KiB. */
const LIST_BYTES_MAX = 32 << 20;

/**
 * Reads a list of objects; integers that a JS number can't carry are bigint, wherever they stand.
 * @throws KvError BAD_JSON
 */
export function parseList(bytes: Uint8Array): JsonObject[] {
  const text = decodeText(bytes);
  let value: unknown;
  try {
    value = JSON.parse(text);
    if (holdsUnsafeInteger(value)) {
      if (text.length > LIST_BYTES_MAX) throw new Error("too large");
      value = parseExact(text);
    }
  } catch (error) {
    throw new KvError("BAD_JSON", { why: shortReason(error) }, { cause: error });
  }
  if (!Array.isArray(value) || !value.every(isObject))
    throw new KvError("BAD_JSON", { why: "it is no list of objects" });
  return value;
}

function stringifyEntry(key: string, entry: unknown): string {
  try {
    const exact = EXACT_KEYS.includes(key) || key === "choices";
    return exact ? exactJson(entry) : (JSON.stringify(entry) ?? "null");
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new KvError("INVALID_REQUEST", { param: key, why: "it is nested too deeply" }, { cause: error });
  }
}

function exactJson(value: unknown): string {
  if (typeof value === "bigint") return value.toString();
  if (Array.isArray(value)) return `[${value.map(exactJson).join(",")}]`;
  if (!isObject(value)) return JSON.stringify(value) ?? "null";
  const entries = Object.entries(value).filter(([, entry]) => entry !== undefined);
  return `{${entries.map(([key, entry]) => `${JSON.stringify(key)}:${exactJson(entry)}`).join(",")}}`;
}

function decodeText(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch (error) {
    throw new KvError("BAD_JSON", { why: "it is not valid UTF-8" }, { cause: error });
  }
}

/** V8's message quotes the text around the fault; a body may hold secrets and megabytes, so only the position is kept. */
function shortReason(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  const position = /position (\d+)/.exec(text)?.[1];
  if (position !== undefined) return `syntax error at character ${position}`;
  return /end of JSON/i.test(text) ? "it ends too early" : "syntax error";
}

const isObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const nameOf = (value: unknown): string =>
  value === null ? "null" : Array.isArray(value) ? "an array" : `a ${typeof value}`;

const hasUnsafeParams = (choice: JsonObject): boolean => holdsUnsafeInteger(choice.disaggregated_params);

/** True when somewhere inside is a number whose text may have been an integer beyond the exact range; no recursion. */
function holdsUnsafeInteger(root: unknown): boolean {
  const pending: unknown[] = [root];
  while (pending.length > 0) {
    const value = pending.pop();
    if (typeof value === "number") {
      if (Math.abs(value) > Number.MAX_SAFE_INTEGER) return true;
    } else if (Array.isArray(value)) {
      for (const item of value) pending.push(item);
    } else if (isObject(value)) {
      for (const item of Object.values(value)) pending.push(item);
    }
  }
  return false;
}

function readExact(text: string, key: string): unknown {
  const span = topLevelValueSpan(text, key);
  if (span === undefined) {
    throw new KvError("INTERNAL", { where: "openai/body", why: `the raw text of ${key} was not found` });
  }
  if (span.end - span.start > EXACT_BYTES_MAX) {
    throw new KvError("INVALID_REQUEST", { param: key, why: `it is larger than ${EXACT_BYTES_MAX} bytes` });
  }
  try {
    return parseExact(text.slice(span.start, span.end));
  } catch (error) {
    // JSON.parse has accepted the text: what is left is recursion.
    throw new KvError("INVALID_REQUEST", { param: key, why: "it is nested too deeply" }, { cause: error });
  }
}
