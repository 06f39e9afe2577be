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
