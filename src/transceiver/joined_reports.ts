import type { TransferReport } from "./api.ts";
import { sumOfWires } from "./receiver_tally.ts";

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/**
 * One report of transfers that ran side by side for one request: waits and durations of the longest, work of all together.
 * @param reports at least one
 */
export function joinReports(reports: readonly [TransferReport, ...TransferReport[]]): TransferReport {
  const [first] = reports;
  if (reports.length === 1) return first;
  const longest = (of: (report: TransferReport) => number): number => Math.max(...reports.map(of));
  const total = (of: (report: TransferReport) => number): number => sum(reports.map(of));
  const bytes = total((report) => report.bytes);
  const movingMs = total((report) => report.movingMs);
  // A part that had nothing to move has no path.
  const paths = new Set(reports.map(({ path }) => path));
  if (paths.size > 1) paths.delete("none");
  const wires = reports.flatMap(({ wire }) => wire ?? []);
  return {
    requestId: first.requestId,
    bytes,
    blocks: longest(({ blocks }) => blocks),
    tokens: first.tokens,
    ms: longest(({ ms }) => ms),
    queueMs: longest(({ queueMs }) => queueMs),
    connectMs: longest(({ connectMs }) => connectMs),
    waitMs: longest(({ waitMs }) => waitMs),
    movingMs,
    verifyMs: total(({ verifyMs }) => verifyMs),
    gbPerS: movingMs > 0 ? bytes / movingMs / 1e6 : 0,
    path: [...paths].join("+"),
    chunks: total(({ chunks }) => chunks),
    runs: total(({ runs }) => runs),
    pieces: total(({ pieces }) => pieces),
    attempts: longest(({ attempts }) => attempts),
    ...(wires[0] === undefined ? {} : { wire: wires.reduce(sumOfWires) }),
    ...(first.first === undefined ? {} : { first: first.first }),
  };
}
