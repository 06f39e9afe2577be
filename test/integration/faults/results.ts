import { writeFileSync } from "node:fs";

/** "fault, side, state" */
export interface Named {
  readonly fault: string;
  readonly side: string;
  readonly state: string;
}
/** What the hits of one cell came to. */
export interface Row {
  readonly cell: string;
  /** How long each took to be over. */
  readonly recoveredMs: number[];
  /** Requests of the rounds' ends that had to be asked again, because a busy machine took the lease's time. */
  again: number;
}

const nameOf = ({ fault, side, state }: Named): string => `${fault}, ${side}, ${state}`;

/** Every n-th cell from the i-th on (KVT_FAULT_SHARD=i/n, set by scripts/faults.mjs), or all of them. */
export function shardOf<Cell extends Named>(cells: readonly Cell[]): readonly Cell[] {
  const [index, count] = (process.env.KVT_FAULT_SHARD ?? "0/1").split("/").map(Number);
  if (index === undefined || count === undefined) throw new Error("KVT_FAULT_SHARD must be i/n");
  return cells.filter((_, place) => place % count === index);
}

export class FaultResults {
  readonly #cells: readonly string[];
  readonly #rows: Row[] = [];

  constructor(cells: readonly Named[]) {
    this.#cells = cells.map(nameOf);
  }

  row(cell: Named): Row {
    const row: Row = { cell: nameOf(cell), recoveredMs: [], again: 0 };
    this.#rows.push(row);
    return row;
  }

  /** For scripts/fault_tables.mjs, if KVT_FAULT_RESULTS names a file. */
  write(): void {
    const file = process.env.KVT_FAULT_RESULTS;
    if (file !== undefined) writeFileSync(file, JSON.stringify({ cells: this.#cells, rows: this.#rows }));
  }
}
