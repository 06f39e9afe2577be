import type * as Ids from "../../src/ids.ts";

let count = 0;

/** Begins the ids of a run. */
export function resetIds(): void {
  count = 0;
}

const hex = (digits: number): string => {
  // Spread over all bits, as random ones are: digests of a sample are chosen by them.
  const word = Math.imul(++count, 0x9e3779b1) >>> 0;
  return word
    .toString(16)
    .padStart(8, "0")
    .repeat(Math.ceil(digits / 8))
    .slice(0, digits);
};

/** In place of src/ids.ts: what is random there follows from the run here, so that a plan gives the same run each time. */
export const seeded = (real: typeof Ids): typeof Ids => ({
  ...real,
  newEpoch: () => hex(16) as Ids.Epoch,
  newToken: () => hex(32) as Ids.CapabilityToken,
  newTransferId: () => `${hex(32)}00000000` as Ids.TransferId,
});
