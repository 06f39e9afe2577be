/** What is now broken, and so what a caller may replace: retry logic reads this, never the text. */
export type ErrorScope = "call" | "transfer" | "peer" | "instance" | "process";

/** One documented failure. `message` may hold `{name}` places that the details fill. */
export interface ErrorSpec {
  readonly scope: ErrorScope;
  /** HTTP status a worker or router answers with when this reaches a client (spec system.md S123-S125). */
  readonly status: number;
  readonly message: string;
  readonly remedy: string;
}
