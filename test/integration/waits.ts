/** What a busy machine may take for what an idle one does at once. */
const LIMIT_MS = 20_000;
const PAUSE_MS = 5;

/**
 * Asks until it is so: for what no event tells from outside a process.
 * @param found what was there instead, for the message
 * @returns how long it took, in ms
 * @throws Error that names `what`, after the limit
 */
export async function until(
  what: string,
  isSo: () => boolean | Promise<boolean>,
  limitMs = LIMIT_MS,
  found?: () => string,
): Promise<number> {
  const start = performance.now();
  while (!(await isSo())) {
    if (performance.now() - start > limitMs) {
      throw new Error(`not within ${limitMs} ms: ${what}${found === undefined ? "" : `; ${found()}`}`);
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
  return performance.now() - start;
}

/** Asks until the answer is as wished, and gives it. @throws as `until` */
export async function eventually<T>(ask: () => Promise<T>, isGood: (value: T) => boolean): Promise<T> {
  let last: { readonly value: T } | undefined;
  const isSo = async (): Promise<boolean> => {
    last = { value: await ask() };
    return isGood(last.value);
  };
  await until("the answer is as wished", isSo, LIMIT_MS, () => `the last one was ${JSON.stringify(last?.value)}`);
  return (last as { readonly value: T }).value;
}
