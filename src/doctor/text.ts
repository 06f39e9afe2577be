import type { PairFacts } from "./peers.ts";
import type { DoctorReport } from "./report.ts";
import type { WorkerFacts } from "./worker_client.ts";

/** How lines are marked: good, bad, and what is only said. */
export interface Marks {
  good(text: string): string;
  bad(text: string): string;
  dim(text: string): string;
  head(text: string): string;
}

const giga = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

/** The report for a reader: one section a room, one fact a line. */
export function doctorText(report: DoctorReport, marks: Marks): string {
  const sections = [
    hostLines(report, marks),
    nixlLines(report, marks),
    cudaLines(report, marks),
    pathLines(report, marks),
    ...(report.pair === undefined ? [] : [pairLines(report.pair, marks)]),
  ];
  if (report.problems.length > 0) {
    sections.push([marks.head("problems"), ...report.problems.map((text) => `  ${marks.bad("✗")} ${text}`)]);
  }
  return `${sections.map((lines) => lines.join("\n")).join("\n\n")}\n`;
}

function hostLines({ host }: DoctorReport, marks: Marks): string[] {
  const limit = host.memoryLimitBytes === null ? "" : `, limited to ${giga(host.memoryLimitBytes)}`;
  const { reserved, free, bytes, shmem } = host.hugePages;
  const line = (what: string, text: string) => `  ${marks.dim(what.padEnd(18))}${text}`;
  const addon =
    "why" in host.addon
      ? `${marks.bad("✗")} ${host.addon.why.split("\n")[0]}`
      : `${marks.good("✓")} ${host.addon.file} (${host.addon.vectorLevel})`;
  const { path, why } = host.socketDirectory;
  return [
    marks.head("host"),
    line("machine", `Linux ${host.kernel}, ${host.arch}, Node.js ${host.node}, ${host.cpus} CPUs`),
    line("memory", `${giga(host.memoryBytes)}${limit}; locked memory: ${host.memlock}`),
    line("huge pages", `${free} of ${reserved} free, ${bytes / 2 ** 20} MiB each; shared memory: ${shmem}`),
    line("addon", addon),
    line("socket directory", why === null ? `${marks.good("✓")} ${path}` : `${marks.bad("✗")} ${path}: ${why}`),
    line("ptrace scope", `${host.ptraceScope}${host.ptraceScope === "0" ? "" : " (UCX's cma needs 0 or none)"}`),
    line("namespaces", Object.values(host.namespaces).join(" ")),
    line("networks", [...host.networks, ...host.rdma.map((name) => `${name} (RDMA)`)].join(", ")),
  ];
}

function nixlLines({ nixl }: DoctorReport, marks: Marks): string[] {
  const lines = [marks.head("nixl")];
  const { library } = nixl;
  for (const { file, origin, why } of nixl.missed) {
    const there = why !== "no such file";
    if (there || library === null)
      lines.push(`  ${there ? marks.bad("✗") : marks.dim("·")} ${file} (${origin}): ${why}`);
  }
  if (library === null) {
    lines.push("  none: KV moves between processes of this host only; `kvt nixl install` brings it");
    return [...lines, ...nixl.warnings.map((text) => `  ${marks.bad("!")} ${text}`)];
  }
  lines.push(`  ${marks.good("✓")} ${library.version ?? "unknown version"}, ${library.file} (${library.origin})`);
  const { trial } = library;
  if (trial !== null && trial.why === null) {
    lines.push(
      `  ${marks.good("✓")} plug-in ${trial.plugin} works: opened in ${trial.openMs.toFixed(0)} ms, a connection and a first READ of ` +
        `${trial.readBytes / 2 ** 20} MiB took ${trial.readMs.toFixed(0)} ms`,
    );
  } else if (trial !== null) {
    lines.push(`  ${marks.bad("✗")} plug-in ${trial.plugin}: ${trial.why}`);
  }
  lines.push(`  plug-ins in ${library.pluginDirectory}:`);
  for (const { name, why } of library.plugins) {
    lines.push(`    ${why === null ? marks.good("✓") : marks.dim("·")} ${name}${why === null ? "" : `: ${why}`}`);
  }
  const { version, transports } = nixl.ucx;
  if (version !== null) lines.push(`  UCX ${version}, transports between two agents here: ${transports.join(", ")}`);
  for (const [name, value] of Object.entries(nixl.variables)) lines.push(`  ${marks.dim(`${name}=${value}`)}`);
  return [...lines, ...nixl.warnings.map((text) => `  ${marks.bad("!")} ${text}`)];
}

function cudaLines({ cuda }: DoctorReport, marks: Marks): string[] {
  if (cuda.driver === null) return [marks.head("cuda"), "  no NVIDIA driver"];
  const devices = cuda.devices.map(({ model, bus }) => `  ${model} at ${bus}`);
  return [marks.head("cuda"), `  driver ${cuda.driver}`, ...devices];
}

function pathLines({ paths }: DoctorReport, marks: Marks): string[] {
  return [
    marks.head("paths"),
    ...paths.map(({ name, usable, why }) => `  ${usable ? marks.good("✓") : marks.dim("·")} ${name.padEnd(14)}${why}`),
  ];
}

function pairLines({ source, reader, layout, places, paths }: PairFacts, marks: Marks): string[] {
  const worker = ({ url, instance, role, model, version }: WorkerFacts) =>
    `${url} (${instance}, ${role === null ? "both roles" : `${role.toLowerCase()} only`}, ${model}, version ${version})`;
  const line = (what: string, text: string) => `  ${marks.dim(what.padEnd(18))}${text}`;
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
    for (const { pieceBytes, latencyUs, moveUs, gbPerS } of measured ?? []) {
      const size = pieceBytes < 1 << 20 ? `${pieceBytes / 1024} KiB` : `${pieceBytes / 2 ** 20} MiB`;
      const alone = `${latencyUs.toFixed(0)} µs from call to end, ${moveUs.toFixed(0)} µs of it copying`;
      lines.push(`      ${size.padStart(6)}  ${gbPerS.toFixed(2).padStart(6)} GB/s   one piece alone: ${alone}`);
    }
  }
  return lines;
}
