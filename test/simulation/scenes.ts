import { readdirSync, readFileSync } from "node:fs";
import type { FaultKind, Plan, Strike, TransferDecision, Trigger } from "./plan.ts";
import { quietTransfer, quietWorld } from "./quiet.ts";

/** A plan that is written for one row, which seeds take rarely or never. */
export interface Scene {
  readonly row: string;
  /** Of the row, which this plan notices. */
  readonly change?: string;
  readonly plan: Plan;
}

const strike = (what: FaultKind, size = 500): Strike => ({ what, where: "here", size });

function scene(
  row: string,
  when: Trigger,
  strikes: readonly Strike[],
  transfer: Partial<TransferDecision> = {},
): Scene {
  const asked: TransferDecision = { ...quietTransfer, ...transfer };
  const decisions = [asked, { do: "fault" as const, when, after: 0, strikes }];
  return { row, plan: { ...quietWorld, verify: "off", contextRanks: 1, decisions } };
}

/** It waits for its offer for half a lease. */
const waiting: Partial<TransferDecision> = { way: "generation first", pause: 1000 };
/** Its prefill goes on for a while when it is granted. */
const growing: Partial<TransferDecision> = { steps: 4, pause: 1000 };

const whenItRenews: Trigger = { row: "sender WAIT --renew", nth: 1 };

/** A sender that says what is not so: what it says may end the pull, and nothing else. */
const written: readonly Scene[] = [
  scene("receiver PULL --renewed", whenItRenews, [strike("early renewal")], waiting),
  scene("receiver PULL --aborted", whenItRenews, [strike("early abort")], waiting),
  scene("receiver PULL --staleEpoch", whenItRenews, [strike("stale epoch")], waiting),
  scene("receiver READ --staleEpoch", { row: "sender GRANT --progress", nth: 1 }, [strike("stale epoch")], growing),
];

/** A reader that keeps a staging slot: its sender ends, the first cause stays. */
const stalled: readonly Scene[] = [
  scene("sender GRANT --slotStalled", { row: "sender GRANT --progress", nth: 1 }, [strike("keep slot")], growing),
  scene(
    "sender ENDING --slotStalled",
    { row: "sender GRANT --progress", nth: 1 },
    [strike("mute"), strike("cancel send"), strike("keep slot")],
    growing,
  ),
];

/** Frames that name another epoch than the connection's: they move nothing. */
export const otherEpochs: Plan = scene(
  "receiver READ --ready",
  { row: "sender GRANT --progress", nth: 1 },
  [strike("frames of another epoch")],
  growing,
).plan;

const at = (row: string, nth: number, ...strikes: readonly Strike[]) =>
  ({ do: "fault", when: { row, nth }, after: 0, strikes }) as const;

/** A lease ends while its sender's owner thread gets no CPU; what is announced shortly before is read shortly behind, and ABORT is late. */
export const endOfLease: Plan = {
  ...quietWorld,
  verify: "off",
  contextRanks: 1,
  noise: 0,
  copy: 1000,
  decisions: [
    { ...quietTransfer, steps: 4, pause: 940 },
    at("sender GRANT --renewed", 2, strike("starve owner", 600)),
    at("receiver READ --ready", 3, strike("slow read", 0)),
    at("sender GRANT --leaseOver", 1, strike("mute", 500)),
  ],
};

const found = new URL("scenes/", import.meta.url);

/** Those in files are seeds that noticed a change which few do, made small. */
export const scenes: readonly Scene[] = [
  ...written,
  ...stalled,
  { row: "receiver READ --ready", plan: otherEpochs },
  { row: "sender GRANT --leaseOver", plan: endOfLease },
  ...readdirSync(found).map((file) => JSON.parse(readFileSync(new URL(file, found), "utf8")) as Scene),
];
