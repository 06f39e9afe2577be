import { isKvError } from "../errors.ts";
import type { TransferReport } from "./api.ts";

/** Names of dropped things that are counted one by one; a hostile peer can't make more. */
const NAMES_LIMIT = 64;

interface Ends {
  completed: number;
  failed: number;
  cancelled: number;
}

/** How transfers have ended since the start. */
export class TransferCounts {
  readonly #sends: Ends = { completed: 0, failed: 0, cancelled: 0 };
  readonly #receives: Ends = { completed: 0, failed: 0, cancelled: 0 };
  readonly #dropped = new Map<string, number>();
  #bytesReceived = 0;
  #mismatches = 0;

  get sends(): Readonly<Ends> {
    return this.#sends;
  }

  get receives(): Readonly<Ends> {
    return this.#receives;
  }

  get bytesReceived(): number {
    return this.#bytesReceived;
  }

  /** Blocks that arrived with another digest than their sender's. */
  get mismatches(): number {
    return this.#mismatches;
  }

  get dropped(): Readonly<Record<string, number>> {
    return Object.fromEntries(this.#dropped);
  }

  sendEnded(error: Error | null): void {
    count(this.#sends, error);
  }

  receiveEnded(report: TransferReport | null, error: Error | null): void {
    count(this.#receives, error);
    this.#bytesReceived += report?.bytes ?? 0;
  }

  mismatch(blocks: number): void {
    this.#mismatches += blocks;
  }

  drop(what: string): void {
    const name = this.#dropped.has(what) || this.#dropped.size < NAMES_LIMIT ? what : "other";
    this.#dropped.set(name, (this.#dropped.get(name) ?? 0) + 1);
  }
}

function count(ends: Ends, error: Error | null): void {
  if (error === null) ends.completed++;
  else if (isKvError(error, "CANCELLED")) ends.cancelled++;
  else ends.failed++;
}
