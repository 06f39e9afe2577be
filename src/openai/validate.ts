import { z } from "zod";
import { KvError } from "../errors.ts";
import { UNSUPPORTED } from "./fields.ts";

type Issue = z.core.$ZodIssue;

/**
 * Checks a body against a request schema.
 * @throws KvError INVALID_REQUEST, UNSUPPORTED_PARAMETER or UNKNOWN_PARAMETER, naming the first field that is wrong
 */
export function parseRequest<Schema extends z.ZodType>(schema: Schema, body: unknown): z.output<Schema> {
  if (isStrict(schema)) refuseBroadObjects(body);
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  throw requestError(result.error);
}

const isStrict = (schema: z.ZodType): boolean =>
  schema instanceof z.ZodObject && schema.def.catchall instanceof z.ZodNever;

/** No object of a request has more fields: `logit_bias` may have as many. */
const FIELDS_MAX = 1024;

/** A schema that meets a million unknown fields lists them all in its message: seconds of work for a small body. */
function refuseBroadObjects(body: unknown): void {
  const pending: unknown[] = [body];
  while (pending.length > 0) {
    const value = pending.pop();
    if (typeof value !== "object" || value === null) continue;
    const items: readonly unknown[] = Array.isArray(value) ? value : Object.values(value);
    if (!Array.isArray(value) && items.length > FIELDS_MAX) {
      throw new KvError("INVALID_REQUEST", {
        param: "body",
        why: `an object has ${items.length} fields, the limit is ${FIELDS_MAX}`,
      });
    }
    for (const item of items) if (typeof item === "object") pending.push(item);
  }
}

/** The one sentence for a client out of a schema's findings. */
export function requestError(error: z.ZodError): KvError {
  const issue = error.issues[0];
  if (issue === undefined) return new KvError("INVALID_REQUEST", { param: "body", why: "it is not valid" });
  const path = pathText(issue.path);
  if (issue.code === "unrecognized_keys") {
    return new KvError(
      "UNKNOWN_PARAMETER",
      { param: pathText([...issue.path, issue.keys[0] ?? "?"]) },
      { cause: error },
    );
  }
  if (issue.code === "custom" && issue.params?.kind === UNSUPPORTED) {
    return new KvError("UNSUPPORTED_PARAMETER", { param: path, why: issue.message }, { cause: error });
  }
  return new KvError("INVALID_REQUEST", { param: path, why: why(issue) }, { cause: error });
}

const WHY_CHARS_MAX = 300;

function why(issue: Issue): string {
  const text = issue.message.slice(0, WHY_CHARS_MAX);
  return `${text.charAt(0).toLowerCase()}${text.slice(1)}`;
}

const NAME_CHARS_MAX = 128;

/** `messages[3].content`; a name that a client made up is cut, since it comes back in the answer. */
function pathText(path: readonly PropertyKey[]): string {
  let text = "";
  for (const part of path) {
    text += typeof part === "number" ? `[${part}]` : text === "" ? String(part) : `.${String(part)}`;
  }
  if (text === "") return path.length === 0 ? "body" : '""';
  return text.slice(0, NAME_CHARS_MAX);
}
