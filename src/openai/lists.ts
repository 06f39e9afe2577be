import { z } from "zod";

/**
 * A list that ends at its first bad item: z.array judges all of them and keeps every finding, which a body of millions of bad items
 * turns into minutes and gigabytes.
 */
export function listOf<Item extends z.ZodType>(item: Item, max: number) {
  return z.unknown().transform((value, context): z.output<Item>[] => {
    const fail = (message: string): never => {
      context.issues.push({ code: "custom", message, input: value });
      return z.NEVER;
    };
    if (!Array.isArray(value)) return fail("must be a list");
    if (value.length > max) return fail(`has ${value.length} items, the limit is ${max}`);
    const items: z.output<Item>[] = [];
    for (const [at, input] of value.entries()) {
      const result = item.safeParse(input);
      if (!result.success) {
        const [issue] = result.error.issues;
        if (issue !== undefined) context.issues.push({ ...issue, path: [at, ...issue.path], input });
        return z.NEVER;
      }
      items.push(result.data);
    }
    return items;
  });
}
