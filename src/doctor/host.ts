import { lstatSync, readdirSync, readFileSync, statfsSync } from "node:fs";
import { availableParallelism, release, totalmem } from "node:os";
import { loadNative, nativeFile } from "../native/loader.ts";
import type { NixlEnv } from "../nixl/places.ts";
import { processNamespaces } from "../transceiver/probe_place.ts";
import { type NetworkDevice, networkDevices } from "../transceiver/slow_path.ts";
import { defaultSocketDir } from "../transceiver/socket_directory.ts";

/** What of this machine decides how KV can move. */
export interface HostFacts {
  readonly node: string;
  readonly kernel: string;
  readonly arch: string;
  readonly cpus: number;
  readonly memoryBytes: number;
  /** Of the cgroup; null: none. */
  readonly memoryLimitBytes: number | null;
  readonly addon: { readonly file: string; readonly vectorLevel: string } | { readonly why: string };
  /** `shmem`: whether pools may get huge pages without reserved ones (transparent_hugepage/shmem_enabled). */
  readonly hugePages: {
    readonly reserved: number;
    readonly free: number;
    readonly bytes: number;
    readonly shmem: string;
  };
  /** Bytes, or "unlimited"; RDMA registers locked memory. */
  readonly memlock: string;
  /** Free in /dev/shm, where UCX's shared memory lies; null: there is none. */
  readonly devShmBytes: number | null;
  /** Where same-host peers meet; `why` null: it can be used. */
  readonly socketDirectory: { readonly path: string; readonly why: string | null };
  /** Equal ones are shared with another process: pid and user matter to cma, net to tcp. */
  readonly namespaces: Readonly<Record<string, string>>;
  /** 0: any process of this user may be read (cma); 1 and more: descendants or none. */
  readonly ptraceScope: string;
  readonly networks: readonly NetworkDevice[];
  /** What of this makes transfers slow or keeps a path away, each with what to do. */
  readonly advice: readonly string[];
}

export function hostFacts(env: NixlEnv): HostFacts {
  const meminfo = textOf("/proc/meminfo");
  const number = (key: string) => Number(meminfo.match(new RegExp(`^${key}:\\s+(\\d+)`, "m"))?.[1] ?? 0);
  const shmem = textOf("/sys/kernel/mm/transparent_hugepage/shmem_enabled").match(/\[(\w+)\]/)?.[1];
  const facts = {
    node: process.version,
    kernel: release(),
    arch: process.arch,
    cpus: availableParallelism(),
    memoryBytes: totalmem(),
    memoryLimitBytes: memoryLimit(),
    addon: addonFacts(),
    hugePages: {
      reserved: number("HugePages_Total"),
      free: number("HugePages_Free"),
      bytes: number("Hugepagesize") * 1024,
      shmem: shmem ?? "unknown",
    },
    memlock: textOf("/proc/self/limits").match(/^Max locked memory\s+(\S+)/m)?.[1] ?? "unknown",
    socketDirectory: socketDirectory(env),
    namespaces: processNamespaces(),
    ptraceScope: textOf("/proc/sys/kernel/yama/ptrace_scope").trim() || "none",
    devShmBytes: freeIn("/dev/shm"),
    networks: networkDevices(),
  };
  return { ...facts, advice: adviceOn(facts) };
}

/** Of 2 MiB in a pool. */
const HUGE_PAGES = "`sysctl vm.nr_hugepages=N` sets N pages of 2 MiB aside before workers start";
/** UCX puts its queues of messages there, a few MiB a peer. */
const DEV_SHM_MIN = 64 << 20;

/** @internal For tests. */
export function adviceOn(facts: Omit<HostFacts, "advice">): readonly string[] {
  const { hugePages, memlock, devShmBytes, ptraceScope, networks } = facts;
  const advice: string[] = [];
  if (hugePages.free === 0 && !["always", "advise", "within_size", "force"].includes(hugePages.shmem)) {
    const none = hugePages.reserved === 0 ? "none are reserved" : `all ${hugePages.reserved} are taken`;
    advice.push(`KV pools get pages of 4 KiB, as ${none} of the huge ones: ${HUGE_PAGES}`);
  }
  const rdma = networks.filter(({ kind }) => kind === "rdma").map(({ name }) => name);
  if (rdma.length > 0 && memlock !== "unlimited") {
    advice.push(
      `${rdma.join(", ")} can't register pools: a process may lock ${memlock} bytes only. Raise it: \`ulimit -l unlimited\`, ` +
        "LimitMEMLOCK=infinity of systemd, --ulimit memlock=-1 of docker",
    );
  }
  if (!["0", "none"].includes(ptraceScope)) {
    const scope = `kernel.yama.ptrace_scope is ${ptraceScope}`;
    advice.push(
      `NIXL between two processes of this host has no cma: ${scope}, and \`sysctl kernel.yama.ptrace_scope=0\` allows it`,
    );
  }
  if (devShmBytes === null || devShmBytes < DEV_SHM_MIN) {
    const what = devShmBytes === null ? "there is no /dev/shm" : `/dev/shm has ${devShmBytes} bytes free`;
    advice.push(
      `NIXL between two processes of this host may fall to TCP: ${what}; give a container --shm-size=1g, or an emptyDir of medium Memory`,
    );
  }
  return advice;
}

function freeIn(folder: string): number | null {
  try {
    const { bavail, bsize } = statfsSync(folder);
    return bavail * bsize;
  } catch {
    return null;
  }
}

export function textOf(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}

export function entriesOf(folder: string): readonly string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function memoryLimit(): number | null {
  const text =
    textOf("/sys/fs/cgroup/memory.max").trim() || textOf("/sys/fs/cgroup/memory/memory.limit_in_bytes").trim();
  const bytes = Number(text);
  return text === "" || Number.isNaN(bytes) || bytes >= totalmem() ? null : bytes;
}

function addonFacts(): HostFacts["addon"] {
  try {
    return { file: nativeFile(), vectorLevel: loadNative().vectorLevel };
  } catch (error) {
    return { why: error instanceof Error ? error.message : String(error) };
  }
}

/** The data plane makes it when it is not there, and refuses one that others could write into. */
function socketDirectory(env: NixlEnv): HostFacts["socketDirectory"] {
  const path = defaultSocketDir(env);
  try {
    const status = lstatSync(path);
    if (!status.isDirectory()) return { path, why: "it is no directory" };
    if (status.uid !== process.getuid?.()) return { path, why: `it belongs to user ${status.uid}` };
    const mode = status.mode & 0o777;
    return { path, why: mode === 0o700 ? null : `its mode is ${mode.toString(8)}, not 700` };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return { path, why: code === "ENOENT" ? null : `it can't be read (${code})` };
  }
}
