import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { z } from "zod";
import type { ProbeSetting } from "./path_probe.ts";
import { defaultSocketDir } from "./socket_directory.ts";

/** Of the namespaces of a process, those that decide which transports of UCX and which files it can share with another. */
const namespaceNames = ["ipc", "mnt", "net", "pid", "user"] as const;

/** What of a process decides whether another one can map its memory. */
export const ProbePlace = z.object({
  host: z.string().max(256),
  pid: z.int(),
  uid: z.int(),
  /** Of the kernel: equal for all processes of a running machine, whatever their namespaces. */
  bootId: z.string().max(64),
  socketDirectory: z.string().max(4096),
  namespaces: z.record(z.string(), z.string().max(64)),
});
export type ProbePlace = z.infer<typeof ProbePlace>;

export function probePlace({ socketDir }: Pick<ProbeSetting, "socketDir">): ProbePlace {
  return {
    host: hostname(),
    pid: process.pid,
    uid: process.getuid?.() ?? -1,
    bootId: textOf("/proc/sys/kernel/random/boot_id"),
    socketDirectory: socketDir ?? defaultSocketDir(process.env),
    namespaces: processNamespaces(),
  };
}

/** `net:[4026531840]` and the like; equal ones are shared. */
export function processNamespaces(): Readonly<Record<string, string>> {
  return Object.fromEntries(namespaceNames.map((name) => [name, linkOf(`/proc/self/ns/${name}`)]));
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "unknown";
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return "unknown";
  }
}
