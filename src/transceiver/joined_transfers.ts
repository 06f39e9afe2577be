import type { KvError } from "../errors.ts";
import type { CancelOutcome, ReceiveTransfer, SendTransfer, TransferReport } from "./api.ts";
import { joinReports } from "./joined_reports.ts";
import { joinStates } from "./opaque_state.ts";
import { Progress } from "./progress.ts";

type Parts<Part> = readonly [Part, ...Part[]];

/** What cancelling several transfers of one request achieved together. */
export function joinOutcomes(outcomes: readonly CancelOutcome[]): CancelOutcome {
  if (outcomes.includes("in_flight")) return "in_flight";
  if (outcomes.includes("cancelled")) return "cancelled";
  return outcomes.includes("already_complete") ? "already_complete" : "not_found";
}

/** All begin, or none. */
export function beginAll<Part extends { cancel(reason?: string): CancelOutcome }>(
  begins: readonly (() => Part)[],
): Parts<Part> {
  const started: Part[] = [];
  try {
    for (const begin of begins) started.push(begin());
  } catch (error) {
    for (const part of started) part.cancel("another part of this request could not begin");
    throw error;
  }
  return started as unknown as Parts<Part>;
}

async function joinDone(parts: Parts<{ readonly done: Promise<TransferReport> }>): Promise<TransferReport> {
  const [first, ...rest] = await Promise.all(parts.map(({ done }) => done));
  return joinReports([first as TransferReport, ...rest]);
}

/**
 * The offers for one request, of all ranks of one instance or of all block tables of one rank, as one. It is complete when all are; one that
 * fails cancels the others, and `done` rejects with the first failure once all have ended, so that all blocks are released by then.
 */
export function joinSends(parts: Parts<SendTransfer>, join = joinStates): SendTransfer {
  const [first] = parts;
  if (parts.length === 1) return first;
  const cancel = (reason?: string): CancelOutcome => joinOutcomes(parts.map((part) => part.cancel(reason)));
  let failure: KvError | null = null;
  for (const part of parts) {
    part.done.catch((error: KvError) => {
      failure ??= error;
      // Its receiver may have it all, and so may the others: only a last word was lost.
      if (error.code !== "LEASE_EXPIRED") cancel(`another offer of this request ended: ${error.message}`);
    });
  }
  const done = Promise.allSettled(parts.map((part) => part.done)).then(() => {
    if (failure !== null) throw failure;
    return joinDone(parts);
  });
  done.catch(() => {});
  return {
    requestId: first.requestId,
    state: join(parts.map(({ state }) => state)),
    ready: (tokens, options) => {
      for (const part of parts) part.ready(tokens, options);
    },
    finish: (tokens) => {
      for (const part of parts) part.finish(tokens);
    },
    done,
    cancel,
  };
}

/**
 * The pulls that one request needs, from several ranks or by several, or for several block tables, as one. It is complete when all are; the first that fails is its
 * outcome, told at once, and cancels the others. Blocks are held by each part until none of its reads can touch them.
 */
export function joinReceives(parts: Parts<ReceiveTransfer>): ReceiveTransfer {
  const [first] = parts;
  if (parts.length === 1) return first;
  const done = joinDone(parts);
  const cancel = (reason?: string): CancelOutcome => joinOutcomes(parts.map((part) => part.cancel(reason)));
  done.catch((error: KvError) => cancel(`another part of this request ended: ${error.message}`));
  return {
    requestId: first.requestId,
    tokens: first.tokens,
    done,
    released: Promise.all(parts.map(({ released }) => released)).then(() => {}),
    progress: { [Symbol.asyncIterator]: () => leastOf(parts)[Symbol.asyncIterator]() },
    cancel,
  };
}

/** Tokens that have arrived in every part. */
function leastOf(parts: Parts<ReceiveTransfer>): Progress {
  const least = new Progress();
  const tokens = parts.map(() => 0);
  const watch = async (progress: AsyncIterable<number>, index: number): Promise<void> => {
    for await (const count of progress) {
      tokens[index] = count;
      least.advance(Math.min(...tokens));
    }
  };
  Promise.all(parts.map(({ progress }, index) => watch(progress, index))).then(
    () => least.end(null),
    (error: Error) => least.end(error),
  );
  return least;
}
