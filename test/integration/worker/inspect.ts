/** What a worker says about its pool at GET /kv/peers. */
export interface Blocks {
  readonly total: number;
  readonly free: number;
  readonly pinned: number;
  readonly quarantined: number;
  readonly sends: { readonly open: number };
}

interface PeersAnswer {
  readonly blocks: Omit<Blocks, "sends">;
  readonly sends: Blocks["sends"];
}

interface TransferEntry {
  readonly event: string;
  readonly bytes: number;
  readonly direction: string;
}

export async function blocksOf(worker: { readonly url: string }): Promise<Blocks> {
  const { blocks, sends } = (await (await fetch(`${worker.url}/kv/peers`)).json()) as PeersAnswer;
  return { ...blocks, sends };
}

/** Transfers of one request id that this worker has seen end. */
export async function transfersOf(worker: { readonly url: string }, id: string): Promise<readonly TransferEntry[]> {
  const answer = await fetch(`${worker.url}/kv/transfers?request_id=${encodeURIComponent(id)}`);
  const { records } = (await answer.json()) as { records: readonly TransferEntry[] };
  return records.filter(({ event }) => event === "transfer");
}

/** Asks until it is so; the test's own limit ends an endless wait. Answers how long it took, in ms. */
export async function until(isSo: () => Promise<boolean>): Promise<number> {
  const start = performance.now();
  while (!(await isSo()));
  return performance.now() - start;
}
