import { callErrors } from "./errors/call_errors.ts";
import { nativeErrors } from "./errors/native_errors.ts";
import { routerErrors } from "./errors/router_errors.ts";
import { setupErrors } from "./errors/setup_errors.ts";
import type { ErrorScope, ErrorSpec } from "./errors/spec.ts";
import { transferErrors } from "./errors/transfer_errors.ts";

export type { ErrorScope, ErrorSpec };

/**
 * Every error this package raises. docs/errors.md and a test are generated from this object; codes are public API: never
 * reuse or rename one.
 */
export const errors = {
  ...callErrors,
  ...routerErrors,
  ...setupErrors,
  ...nativeErrors,
  ...transferErrors,
} as const satisfies Record<string, ErrorSpec>;

export type ErrorCode = keyof typeof errors;

type Places<Text extends string> = Text extends `${string}{${infer Name}}${infer Rest}` ? Name | Places<Rest> : never;
/** The details a code needs: exactly the places of its message and remedy. */
export type ErrorDetails<Code extends ErrorCode> = Record<
  Places<(typeof errors)[Code]["message"]> | Places<(typeof errors)[Code]["remedy"]>,
  string | number
>;

const fill = (text: string, details: Readonly<Record<string, string | number>>): string =>
  text.replace(/\{(\w+)\}/g, (place, name: string) => String(details[name] ?? place));

const mark = Symbol.for("kv-transceiver.KvError");

/** An error with a stable `code`, a sentence that says what happened, and a `remedy`. Match on `code`, not on the text. */
export class KvError<Code extends ErrorCode = ErrorCode> extends Error {
  override readonly name = "KvError";
  readonly code: Code;
  readonly scope: ErrorScope;
  readonly status: number;
  readonly remedy: string;
  readonly details: Readonly<Record<string, string | number>>;
  /** @internal */ readonly [mark] = true;

  constructor(code: Code, details: ErrorDetails<Code>, options?: ErrorOptions) {
    const spec: ErrorSpec = errors[code];
    super(fill(spec.message, details), options);
    this.code = code;
    this.scope = spec.scope;
    this.status = spec.status;
    this.remedy = fill(spec.remedy, details);
    this.details = details;
  }

  /** Works across two loaded copies of this package, which `instanceof` alone would not. */
  static override [Symbol.hasInstance](value: unknown): value is KvError {
    return typeof value === "object" && value !== null && mark in value;
  }
}

/**
 * For an error that is kept. Until the text of its stack is asked for, V8 keeps the frames themselves, and through them whoever called:
 * the request, its prompt, its connection.
 */
export function withoutFrames<E extends Error>(error: E): E {
  for (let at: unknown = error; at instanceof Error; at = at.cause) void at.stack;
  return error;
}

export const isKvError = (value: unknown, code?: ErrorCode): value is KvError =>
  value instanceof KvError && (code === undefined || value.code === code);
