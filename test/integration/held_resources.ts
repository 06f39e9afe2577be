import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { expect } from "vitest";
import { until } from "./waits.ts";

/** What V8 may keep of the requests of one test; blocks and bodies that leak are more. */
const RSS_GROWTH_KIB = 48 * 1024;
/** Also on a busy machine, where a peer's end is noticed late; V8 gives memory back once its process has been idle for seconds. */
const SETTLE_MS = 30_000;

export interface Resources {
  /** Open files, without HTTP connections that stand: those last as long as their client wants. */
  readonly descriptors: number;
  /** What each of them is, such as `socket:[123]`. */
  readonly files: readonly string[];
  /** Mappings of KV pools, own and peers'. */
  readonly pools: number;
  readonly rssAnonKib: number;
}

export interface Inspected {
  /** Of its HTTP server, if it has one. */
  readonly url?: string;
  readonly child: { readonly pid?: number | undefined };
}

export function resourcesOf(process: Inspected): Resources {
  const proc = `/proc/${process.child.pid}`;
  const maps = readFileSync(`${proc}/maps`, "utf8").split("\n");
  const files = filesOf(process);
  return {
    descriptors: files.length,
    files,
    pools: maps.filter((line) => line.includes("memfd:")).length,
    rssAnonKib: Number(/RssAnon:\s+(\d+) kB/.exec(readFileSync(`${proc}/status`, "utf8"))?.[1]),
  };
}

/**
 * Waits until the process holds no more than before: descriptors, mapped pools, memory.
 * @throws Error that says what each additional descriptor is
 */
export async function expectAsBefore(name: string, process: Inspected, before: Resources): Promise<void> {
  let now = resourcesOf(process);
  await until(
    `descriptors, mapped pools and memory of ${name} are as at the start`,
    () => {
      now = resourcesOf(process);
      const grown = now.rssAnonKib - before.rssAnonKib;
      return now.descriptors <= before.descriptors && now.pools <= before.pools && grown < RSS_GROWTH_KIB;
    },
    SETTLE_MS,
    () => {
      const counts = ({ descriptors, pools, rssAnonKib }: Resources): string =>
        `${descriptors} descriptors, ${pools} pools, ${rssAnonKib} KiB`;
      return `${counts(before)} at the start, now ${counts(now)}; new: ${additional(process, before, now).join(", ")}`;
    },
  );
  expect(now.descriptors).toBeLessThanOrEqual(before.descriptors);
}

/** What is open now and was not at the start. A socket keeps its number for life, so one that was replaced by another counts too. */
export function additional(process: Inspected, before: Resources, now: Resources): string[] {
  const left = new Map<string, number>();
  for (const file of before.files) left.set(file, (left.get(file) ?? 0) + 1);
  const sockets = socketsOf(process);
  return now.files.flatMap((file) => {
    const count = left.get(file) ?? 0;
    left.set(file, count - 1);
    return count > 0 ? [] : [sockets.get(file) ?? file];
  });
}

function filesOf(process: Inspected): string[] {
  const connections = httpConnectionsOf(process);
  const folder = `/proc/${process.child.pid}/fd`;
  return readdirSync(folder)
    .map((fd) => {
      try {
        return readlinkSync(`${folder}/${fd}`);
      } catch {
        return "closed meanwhile";
      }
    })
    .filter((name) => !connections.has(name));
}

interface TcpSocket {
  readonly name: string;
  /** As the kernel writes them: hexadecimal address and port. */
  readonly local: string;
  readonly remote: string;
  readonly state: string;
}

function* tcpSocketsOf({ child }: Inspected): Iterable<TcpSocket> {
  for (const kind of ["tcp", "tcp6"]) {
    for (const line of readFileSync(`/proc/${child.pid}/net/${kind}`, "utf8").split("\n").slice(1)) {
      // sl, local, remote, state, queues, timer, retransmits, uid, timeout, inode
      const [, local, remote, state, , , , , , inode] = line.trim().split(/\s+/);
      if (local === undefined || remote === undefined || state === undefined) continue;
      yield { name: `socket:[${inode}]`, local, remote, state };
    }
  }
}

/** Both ends of established connections to the worker's port. One whose client has gone is not among them: the worker has to close it. */
function httpConnectionsOf(process: Inspected): ReadonlySet<string> {
  if (process.url === undefined) return new Set();
  const port = `:${Number(new URL(process.url).port).toString(16).toUpperCase().padStart(4, "0")}`;
  const found = new Set<string>();
  for (const { name, local, remote, state } of tcpSocketsOf(process)) {
    if (state === "01" && (local.endsWith(port) || remote.endsWith(port))) found.add(name);
  }
  return found;
}

/** By its name, what a socket connects. States: 01 established, 06 time wait, 08 close wait, 0A listening. */
function socketsOf(process: Inspected): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  const port = (end: string): number => Number.parseInt(end.split(":")[1] ?? "", 16);
  for (const { name, local, remote, state } of tcpSocketsOf(process)) {
    found.set(name, `${name} tcp port ${port(local)} to ${port(remote)} in state ${state}`);
  }
  for (const line of readFileSync(`/proc/${process.child.pid}/net/unix`, "utf8").split("\n").slice(1)) {
    // number, references, protocol, flags, type, state, inode, path
    const [, , , , , state, inode, path] = line.trim().split(/\s+/);
    if (inode !== undefined)
      found.set(`socket:[${inode}]`, `socket:[${inode}] unix ${path ?? "without path"} in state ${state}`);
  }
  return found;
}
