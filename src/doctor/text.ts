import type { DoctorReport } from "./report.ts";

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
