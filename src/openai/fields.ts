import { z } from "zod";

/** What becomes of one request field; docs/openai.md is these notes as tables. */
export interface FieldNote {
  readonly verdict: "supported" | "ignored" | "refused";
  readonly note: string;
}

const notes = z.registry<FieldNote>();

/** The field does what its standard says, or what `note` adds to it. */
export function supported<Schema extends z.ZodType>(schema: Schema, note: string): Schema {
  // A copy: the registry goes by identity, and one schema may serve several fields.
  const own = schema.clone() as Schema;
  notes.add(own as z.ZodType, { verdict: "supported", note });
  return own;
}

/** Accepted and without effect, as its standard allows. */
export function ignored(note: string): z.ZodOptional<z.ZodUnknown> {
  return z.unknown().optional().register(notes, { verdict: "ignored", note });
}

/** Code of zod issues that become KvError UNSUPPORTED_PARAMETER. */
export const UNSUPPORTED = "unsupported";

/**
 * Answered with 400 and the field's name, unless its value asks for nothing: null, or one that `neutral` knows.
 * @param note why, as the sentence the client reads
 */
export function refused(note: string, neutral: (value: unknown) => boolean = () => false): z.ZodType<unknown> {
  const schema = z
    .unknown()
    .superRefine((value, context) => {
      if (value === undefined || value === null || neutral(value)) return;
      context.addIssue({ code: "custom", message: note, params: { kind: UNSUPPORTED } });
    })
    .optional();
  return schema.register(notes, { verdict: "refused", note });
}

/** Every field of a request schema with its note, in the order of the schema. */
export function fieldNotes(schema: z.ZodObject): ReadonlyMap<string, FieldNote | undefined> {
  return new Map(Object.entries(schema.shape).map(([name, field]) => [name, notes.get(field as z.ZodType)]));
}
