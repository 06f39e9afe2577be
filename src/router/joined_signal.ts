/** A signal with several causes. Dispose of it when the work has ended, else it stays on the lists of its sources. */
export interface JoinedSignal {
  readonly signal: AbortSignal;
  dispose(): void;
}

/**
 * Fires with the reason of the first source that fires, or with a DOMException `TimeoutError` after `timeoutMs`. AbortSignal.any
 * would do, but it leaves its entry on a long-lived source (a worker, the server) until the garbage collector comes by.
 */
export function joinSignals(sources: readonly AbortSignal[], timeoutMs?: number): JoinedSignal {
  const controller = new AbortController();
  const fired = sources.find((source) => source.aborted);
  if (fired !== undefined) controller.abort(fired.reason);
  const removals: (() => void)[] = [];
  const dispose = (): void => {
    for (const remove of removals.splice(0)) remove();
  };
  const fire = (reason: unknown): void => {
    dispose();
    controller.abort(reason);
  };
  if (fired === undefined) {
    for (const source of sources) {
      const onAbort = (): void => fire(source.reason);
      source.addEventListener("abort", onAbort, { once: true });
      removals.push(() => source.removeEventListener("abort", onAbort));
    }
    if (timeoutMs !== undefined) {
      const timer = setTimeout(() => fire(new DOMException(`not within ${timeoutMs} ms`, "TimeoutError")), timeoutMs);
      removals.push(() => clearTimeout(timer));
    }
  }
  return { signal: controller.signal, dispose };
}

export const isTimeoutReason = (reason: unknown): boolean =>
  reason instanceof DOMException && reason.name === "TimeoutError";
