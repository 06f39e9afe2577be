import { factLine, type Marks, measuredLines } from "./lines.ts";
import type { PairFacts } from "./peers.ts";
import type { WorkerFacts } from "./worker_client.ts";

/** Two workers as a pair. */
export function pairLines({ source, reader, layout, places, paths }: PairFacts, marks: Marks): string[] {
  const line = (what: string, text: string) => factLine(marks, what, text);
  const notes = layout.notes.length === 0 ? "" : ` (not alike, which does no harm: ${layout.notes.join("; ")})`;
  const lines = [
    marks.head("pair"),
    line("is read", worker(source)),
    line("reads", worker(reader)),
    line("layout", layout.fits ? `${marks.good("✓")} KV can move${notes}` : `${marks.bad("✗")} ${layout.differences}`),
  ];
  if (places !== null) {
    const [there, here] = [places.source.namespaces, places.reader.namespaces];
    const own = Object.keys(there).filter((name) => there[name] !== here[name]);
    const text = own.length === 0 ? "all shared" : `not shared: ${own.join(", ")}`;
    const machine = places.source.bootId === places.reader.bootId ? `one machine; namespaces ${text}` : "two machines";
    lines.push(line("places", machine));
  }
  for (const { name, chosen, usable, why, measured } of paths) {
    lines.push(`  ${usable ? marks.good("✓") : marks.dim("·")} ${name.padEnd(14)}${chosen ? "taken: " : ""}${why}`);
    lines.push(...measuredLines(measured));
  }
  return lines;
}

const worker = ({ url, instance, role, model, version }: WorkerFacts): string =>
  `${url} (${instance}, ${role === null ? "both roles" : `${role.toLowerCase()} only`}, ${model}, version ${version})`;
