import type { ProbedPath } from "../transceiver/path_probe.ts";

/** How lines are marked: good, bad, and what is only said. */
export interface Marks {
  good(text: string): string;
  bad(text: string): string;
  dim(text: string): string;
  head(text: string): string;
}

export const giga = (bytes: number): string =>
  bytes < 2 ** 30 ? `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const WIDTH = 18;

/** A fact and its name. */
export const factLine = (marks: Marks, what: string, text: string): string =>
  `  ${marks.dim(what.padEnd(WIDTH))}${text}`;

export function measuredLines(measured: ProbedPath["pieces"] | null): string[] {
  return (measured ?? []).map(({ pieceBytes, latencyUs, moveUs, gbPerS }) => {
    const size = pieceBytes < 1 << 20 ? `${pieceBytes / 1024} KiB` : `${pieceBytes / 2 ** 20} MiB`;
    const alone = `${latencyUs.toFixed(0)} µs from call to end, ${moveUs.toFixed(0)} µs of it copying`;
    return `      ${size.padStart(6)}  ${gbPerS.toFixed(2).padStart(6)} GB/s   one piece alone: ${alone}`;
  });
}
