import { allRows } from "./rows.ts";

/** How often each row of the session tables was taken. */
export type Coverage = Map<string, number>;

export function addCoverage(to: Coverage, more: ReadonlyMap<string, number>): void {
  for (const [row, hits] of more) to.set(row, (to.get(row) ?? 0) + hits);
}

export const untaken = (coverage: ReadonlyMap<string, number>): string[] =>
  allRows.filter((row) => (coverage.get(row) ?? 0) === 0);

/** A line a row, those that were never taken first. */
export function coverageTable(coverage: ReadonlyMap<string, number>): string {
  const rows = allRows.map((row) => ({ row, hits: coverage.get(row) ?? 0 }));
  const missing = rows.filter(({ hits }) => hits === 0).length;
  const lines = rows.sort((a, b) => a.hits - b.hits).map(({ row, hits }) => `${String(hits).padStart(9)}  ${row}`);
  return `${rows.length - missing} of ${rows.length} rows were taken\n${lines.join("\n")}`;
}
