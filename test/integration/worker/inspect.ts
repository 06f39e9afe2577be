import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** What a worker says about its pool at GET /kv/peers. */
export interface Blocks {
  readonly total: number;
  readonly free: number;
  readonly pinned: number;
  readonly quarantined: number;
  readonly sends: { readonly open: number; readonly failed: number };
  readonly receives: { readonly open: number; readonly failed: number };
}

interface PeersAnswer {
  readonly blocks: Omit<Blocks, "sends" | "receives">;
  readonly sends: Blocks["sends"];
  readonly receives: Blocks["receives"];
}

interface TransferEntry {
  readonly event: string;
  readonly bytes: number;
  readonly direction: string;
}

export async function blocksOf(worker: { readonly url: string }): Promise<Blocks> {
  const { blocks, sends, receives } = (await (await fetch(`${worker.url}/kv/peers`)).json()) as PeersAnswer;
  return { ...blocks, sends, receives };
}

/** Transfers of one request id that this worker has seen end. */
export async function transfersOf(worker: { readonly url: string }, id: string): Promise<readonly TransferEntry[]> {
  const answer = await fetch(`${worker.url}/kv/transfers?request_id=${encodeURIComponent(id)}`);
  const { records } = (await answer.json()) as { records: readonly TransferEntry[] };
  return records.filter(({ event }) => event === "transfer");
}

/** Nothing is held, in quarantine or on its way; prefixes that are kept for reuse are not counted as free. */
export async function holdsNothing(worker: { readonly url: string }): Promise<boolean> {
  const { free, total, quarantined, sends, receives } = await blocksOf(worker);
  return free === total && quarantined === 0 && sends.open === 0 && receives.open === 0;
}

/** How often what had been given up was free within 100 ms, and in all, as the worker's own histogram has it. */
export async function freedOf(worker: {
  readonly url: string;
}): Promise<{ readonly inTime: number; readonly all: number }> {
  const text = await (await fetch(`${worker.url}/prometheus/metrics`)).text();
  const sum = (series: RegExp): number =>
    [...text.matchAll(series)].reduce((total, [, count]) => total + Number(count), 0);
  return {
    inTime: sum(/^kvt_worker_abandoned_to_free_seconds_bucket\{(?=[^}]*le="0\.1")[^}]*\} (\d+)$/gm),
    all: sum(/^kvt_worker_abandoned_to_free_seconds_count\{[^}]*\} (\d+)$/gm),
  };
}

export interface Resources {
  /** Open files, without HTTP connections that stand: those last as long as their client wants. */
  readonly descriptors: number;
  /** Mappings of KV pools, own and peers'. */
  readonly pools: number;
  readonly rssAnonKib: number;
}

interface Inspected {
  readonly url: string;
  readonly child: { readonly pid?: number | undefined };
}

export function resourcesOf(worker: Inspected): Resources {
  const proc = `/proc/${worker.child.pid}`;
  const maps = readFileSync(`${proc}/maps`, "utf8").split("\n");
  return {
    descriptors: descriptorsOf(worker).length,
    pools: maps.filter((line) => line.includes("memfd:")).length,
    rssAnonKib: Number(/RssAnon:\s+(\d+) kB/.exec(readFileSync(`${proc}/status`, "utf8"))?.[1]),
  };
}

/** What each of these open files is, such as `socket:[123]`. */
export function descriptorsOf(worker: Inspected): string[] {
  const connections = httpConnectionsOf(worker);
  const folder = `/proc/${worker.child.pid}/fd`;
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

/** Both ends of established connections to the worker's port. One whose client has gone is not among them: the worker has to close it. */
function httpConnectionsOf({ url, child }: Inspected): ReadonlySet<string> {
  const port = Number(new URL(url).port).toString(16).toUpperCase().padStart(4, "0");
  const lines = ["tcp", "tcp6"].flatMap((kind) => readFileSync(`/proc/${child.pid}/net/${kind}`, "utf8").split("\n"));
  const found = new Set<string>();
  for (const line of lines) {
    // sl, local, remote, state, queues, timer, retransmits, uid, timeout, inode
    const [, local, remote, state, , , , , , inode] = line.trim().split(/\s+/);
    const isOurs = local?.endsWith(`:${port}`) || remote?.endsWith(`:${port}`);
    if (state === "01" && isOurs) found.add(`socket:[${inode}]`);
  }
  return found;
}
