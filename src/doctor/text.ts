import { dirname } from "node:path";
import { factLine, giga, type Marks, measuredLines } from "./lines.ts";
import { pairLines } from "./pair_text.ts";
import type { DoctorReport } from "./report.ts";

/** The report for a reader: one section a room, one fact a line. */
export function doctorText(report: DoctorReport, marks: Marks): string {
  const sections = [
    hostLines(report, marks),
    nixlLines(report, marks),
    cudaLines(report, marks),
    pathLines(report, marks),
    ...(report.pair === undefined ? [] : [pairLines(report.pair, marks)]),
    report.problems.length === 0
      ? [`${marks.good("✓")} nothing is broken`]
      : [marks.head("problems"), ...report.problems.map((text) => `  ${marks.bad("✗")} ${text}`)],
  ];
  return `${sections.map((lines) => lines.join("\n")).join("\n\n")}\n`;
}

function hostLines({ host }: DoctorReport, marks: Marks): string[] {
  const limit = host.memoryLimitBytes === null ? "" : `, limited to ${giga(host.memoryLimitBytes)}`;
  const { reserved, free, bytes, shmem } = host.hugePages;
  const line = (what: string, text: string) => factLine(marks, what, text);
  const addon =
    "why" in host.addon
      ? `${marks.bad("✗")} ${host.addon.why.split("\n")[0]}`
      : `${marks.good("✓")} ${host.addon.file} (${host.addon.vectorLevel})`;
  const { path, why } = host.socketDirectory;
  const memlock = host.memlock === "unlimited" ? "without limit" : `up to ${giga(Number(host.memlock))}`;
  const shm = host.devShmBytes === null ? "none" : `${giga(host.devShmBytes)} free`;
  return [
    marks.head("host"),
    line("machine", `Linux ${host.kernel}, ${host.arch}, Node.js ${host.node}, ${host.cpus} CPUs`),
    line("memory", `${giga(host.memoryBytes)}${limit}; may be locked ${memlock}; /dev/shm: ${shm}`),
    line(
      "huge pages",
      `${free} of ${reserved} free, ${bytes / 2 ** 20} MiB each; for shared memory without reserve: ${shmem}`,
    ),
    line("addon", addon),
    line("socket directory", why === null ? `${marks.good("✓")} ${path}` : `${marks.bad("✗")} ${path}: ${why}`),
    line("ptrace scope", host.ptraceScope),
    line("namespaces", Object.values(host.namespaces).join(" ")),
    line("networks", networks(host.networks)),
    ...host.advice.map((text) => `  ${marks.bad("!")} ${text}`),
  ];
}

function networks(devices: DoctorReport["host"]["networks"]): string {
  if (devices.length === 0) return "none but loopback";
  return devices
    .map(({ name, kind, up, gbPerS }) => {
      const facts = [...(kind === "rdma" ? ["RDMA"] : []), ...(up ? [] : ["down"])];
      if (gbPerS !== null) facts.push(`${gbPerS.toFixed(1)} GB/s`);
      return facts.length === 0 ? name : `${name} (${facts.join(", ")})`;
    })
    .join(", ");
}

function nixlLines({ nixl }: DoctorReport, marks: Marks): string[] {
  const lines = [marks.head("nixl")];
  const { library } = nixl;
  for (const { file, origin, why } of nixl.missed) {
    if (why !== NO_SUCH_FILE) lines.push(`  ${marks.bad("✗")} ${file} (${origin}): ${why}`);
  }
  const said = nixl.warnings.map((text) => `  ${marks.bad("!")} ${text}`);
  if (library === null) {
    const what = "not found: KV moves between processes of this host only; `kvt nixl install` brings it";
    return [...lines, `  ${what}`, ...lookedIn(nixl.missed, marks), ...variableLines(nixl.variables, marks), ...said];
  }
  lines.push(
    `  ${marks.good("✓")} NIXL ${library.version ?? "of unknown version"}, ${library.file} (${library.origin})`,
  );
  if (nixl.degraded !== null)
    lines.push(`  ${marks.bad("✗")} degraded: ${nixl.degraded.split(": ")[0]} (see problems)`);
  const { trial } = library;
  if (trial !== null && trial.why === null) {
    lines.push(
      `  ${marks.good("✓")} plug-in ${trial.plugin} works: opened in ${trial.openMs.toFixed(0)} ms, a connection and a first READ of ` +
        `${trial.readBytes / 2 ** 20} MiB took ${trial.readMs.toFixed(0)} ms`,
    );
  } else if (trial !== null) {
    lines.push(`  ${marks.bad("✗")} plug-in ${trial.plugin}: ${trial.why}`);
  }
  lines.push(`  plug-ins in ${library.pluginDirectory}; UCX and LIBFABRIC move KV, the others are not used:`);
  for (const { name, why } of library.plugins) {
    lines.push(`    ${why === null ? marks.good("✓") : marks.dim("·")} ${name}${why === null ? "" : `: ${why}`}`);
  }
  const { version, transports } = nixl.ucx;
  if (version !== null) lines.push(`  UCX ${version}, transports between two agents here: ${transports.join(", ")}`);
  return [...lines, ...fabricLines(nixl.fabric, marks), ...variableLines(nixl.variables, marks), ...said];
}

const NO_SUCH_FILE = "no such file";

/** A line for each kind of place. */
function lookedIn(missed: DoctorReport["nixl"]["missed"], marks: Marks): string[] {
  const folders = new Map<string, Set<string>>();
  for (const { file, origin, why } of missed) {
    if (why === NO_SUCH_FILE) folders.set(origin, (folders.get(origin) ?? new Set()).add(dirname(file)));
  }
  return [...folders].map(([origin, places]) => `  ${marks.dim(`· ${origin}: nothing in ${[...places].join(", ")}`)}`);
}

const variableLines = (variables: DoctorReport["nixl"]["variables"], marks: Marks): string[] =>
  Object.entries(variables).map(([name, value]) => `  ${marks.dim(`${name}=${value}`)}`);

function fabricLines(fabric: DoctorReport["nixl"]["fabric"], marks: Marks): string[] {
  if (fabric === null) return [];
  const lines = ["  what plug-in LIBFABRIC needs of this machine:"];
  for (const { name, file, version, why } of fabric.libraries) {
    const there = `${name}${version === null ? "" : ` ${version}`}, ${file}`;
    lines.push(`    ${why === null ? `${marks.good("✓")} ${there}` : `${marks.dim("·")} ${why}`}`);
  }
  const libfabric = fabric.libraries.find(({ name }) => name.startsWith("libfabric."));
  if (libfabric?.why !== null) return lines;
  if (fabric.providers.length === 0) {
    return [
      ...lines,
      `    ${marks.bad("✗")} libfabric has no provider: ${fabric.why} (FI_PROVIDER hides all but those it names)`,
    ];
  }
  const taken =
    fabric.takes === null
      ? `${marks.bad("✗")} none of them is one that NIXL takes (cxi, efa, tcp, sockets); FI_PROVIDER hides all but those it names`
      : `NIXL takes ${fabric.takes}`;
  return [...lines, `    providers of libfabric: ${fabric.providers.join(", ")}; ${taken}`];
}

function cudaLines({ cuda }: DoctorReport, marks: Marks): string[] {
  const { driver, library, version, why, devices, modules } = cuda;
  const lines = [marks.head("cuda")];
  if (driver !== null || library !== null) {
    lines.push(`  driver ${driver ?? "unknown"}${library === null ? "" : `, CUDA ${version}, ${library}`}`);
  }
  if (why !== null) {
    const mark = modules.length > 0 ? marks.bad("✗") : marks.dim("·");
    lines.push(`  ${mark} no GPU: ${why}`);
    lines.push(
      "    KV pools lie in memory of the host; shared_memory and the NIXL paths move them, cuda_peer needs a GPU",
    );
  }
  for (const gpu of devices) {
    const { device, name, capability, multiprocessors, memoryBytes, uuid, bus, kernels, reaches } = gpu;
    lines.push(
      `  ${gpu.why === null ? marks.good("✓") : marks.bad("✗")} cuda:${device} ${name}, ${giga(memoryBytes)}, ${multiprocessors} multiprocessors, ` +
        `compute capability ${capability}, ${uuid} at ${bus}`,
    );
    const others =
      devices.length === 1
        ? ""
        : `; reads the memory of ${reaches.map((other) => `cuda:${other}`).join(", ") || "no other GPU"}`;
    lines.push(`      kernels: ${kernels ?? "none"}${others}${gpu.why === null ? "" : `; ${gpu.why}`}`);
  }
  return lines;
}

function pathLines({ paths }: DoctorReport, marks: Marks): string[] {
  return [
    marks.head("paths"),
    ...paths.flatMap(({ name, usable, why, measured }) => [
      `  ${usable ? marks.good("✓") : marks.dim("·")} ${name.padEnd(14)}${why}`,
      ...measuredLines(measured),
    ]),
  ];
}
