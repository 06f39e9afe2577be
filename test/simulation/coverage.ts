import { receiverTable } from "../../src/transceiver/receiver_table.ts";
import { senderTable, waitTable } from "../../src/transceiver/sender_table.ts";

/** How often each row of the session tables was taken. */
export type Coverage = Map<string, number>;

export const rowName = (role: string, from: string, event: string): string => `${role} ${from} --${event}`;

/** Every row that a session can take, WAIT's among them; what a PULL without any session is told is no session's step. */
function allRows(): string[] {
  const rows = Object.entries({ sender: [waitTable, senderTable], receiver: [receiverTable] }).flatMap(
    ([role, tables]) =>
      tables.flatMap((table) =>
        Object.entries(table).flatMap(([from, row]) => Object.keys(row).map((event) => rowName(role, from, event))),
      ),
  );
  return [...new Set(rows)];
}

/** A line a row, those that were never taken first. */
export function coverageTable(coverage: Coverage): string {
  const rows = allRows().map((row) => ({ row, hits: coverage.get(row) ?? 0 }));
  const missing = rows.filter(({ hits }) => hits === 0).length;
  const lines = rows.sort((a, b) => a.hits - b.hits).map(({ row, hits }) => `${String(hits).padStart(9)}  ${row}`);
  return `${rows.length - missing} of ${rows.length} rows were taken\n${lines.join("\n")}`;
}
