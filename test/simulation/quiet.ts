import { verifyModes } from "../../src/transceiver/verification.ts";
import type { Plan, TransferDecision } from "./plan.ts";
import type { RunResult } from "./run.ts";

export const quietTransfer: TransferDecision = {
  do: "transfer",
  at: 0,
  context: 0,
  generation: 0,
  again: null,
  tokens: 22,
  skip: 0,
  way: "context first",
  steps: 0,
  pause: 300,
  late: 0,
  mistake: null,
};

export const quietWorld: Omit<Plan, "verify" | "contextRanks" | "decisions"> = {
  noise: 7,
  slow: false,
  network: 100,
  owner: 100,
  copy: 100,
  leaseMs: 1000,
  transferLimit: 60,
  queueLimit: 80,
  clocks: "good",
  strict: false,
  rates: [1000, -1000],
  proof: "uid",
  contexts: 1,
  generations: 1,
  generationRanks: 1,
  foreign: null,
  turns: 2,
};

/** Plans in which nothing goes wrong. That a session ends is no merit where it could have been complete. */
export const quietPlans: readonly Plan[] = verifyModes.flatMap((verify) =>
  [1, 2].flatMap((contextRanks) =>
    (["context first", "generation first"] as const).map((way) => ({
      ...quietWorld,
      verify,
      contextRanks,
      layerwise: true,
      decisions: [0, 3].map((steps) => ({ ...quietTransfer, way, steps })),
    })),
  ),
);

export const isAllComplete = ({ failure, outcomes }: RunResult): boolean =>
  failure === null && outcomes.size === 1 && outcomes.has("ok");
