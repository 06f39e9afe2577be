// What runs of the fault matrix found: summed up over runs, printed as a table, put into docs/faults.md.

/**
 * @typedef {{ cell: string, recoveredMs: number[], again?: number }} Row hits of one cell, "fault, side, state", in order; requests asked again
 * @typedef {{ cells: string[], rows: Row[] }} Results all cells of the matrix, and what those that ran found
 */

/** Hits of the same cell add up. @param {Results[]} runs @returns {Results} in the matrix's order */
export function mergeResults(runs) {
  const cells = [...new Set(runs.flatMap((run) => run.cells))];
  const rows = runs.flatMap((run) => run.rows);
  return {
    cells,
    rows: cells.flatMap((cell) => {
      const found = rows.filter((row) => row.cell === cell);
      const recoveredMs = found.flatMap((row) => row.recoveredMs);
      const again = found.reduce((sum, row) => sum + (row.again ?? 0), 0);
      return recoveredMs.length === 0 ? [] : [{ cell, recoveredMs, again }];
    }),
  };
}

/** Sentences about cells that were hit less than `rounds` times. @param {Results} results */
export function missingHits({ cells, rows }, rounds) {
  return cells.flatMap((cell) => {
    const hits = rows.find((row) => row.cell === cell)?.recoveredMs.length ?? 0;
    return hits < rounds ? [`${cell}: ${hits} of ${rounds} hits`] : [];
  });
}

/** @param {Results} results */
export function renderTable({ rows }) {
  const lines = rows.map(({ cell, recoveredMs, again }) => {
    const sorted = [...recoveredMs].sort((one, other) => one - other);
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))].toFixed(0);
    return `| ${[...cell.split(", "), sorted.length, at(0.5), at(0.99), at(1), again].join(" | ")} |`;
  });
  const head = "| fault | side | state | hits | recovered, median ms | p99 ms | worst ms | asked again |";
  return `${[head, "|---|---|---|---|---|---|---|---|", ...lines].join("\n")}\n`;
}

/** Puts a table between the marks of its level. @param {"transceiver" | "worker" | "nixl"} level */
export function withTable(page, level, table) {
  const [begin, end] = [`<!-- ${level} level: from here`, `<!-- ${level} level: to here -->`];
  const from = page.indexOf("\n", page.indexOf(begin));
  const to = page.indexOf(end);
  if (!page.includes(begin) || to < from) throw new Error(`the page has no place for the table of the ${level} level`);
  return `${page.slice(0, from)}\n\n${table}\n${page.slice(to)}`;
}
