import type { Fault } from "../transceiver/peer_process.ts";

export const faults = ["kill", "stop 150 ms", "stop 600 ms", "cut", "both restarted"] as const;
export type FaultName = (typeof faults)[number];
export const sides = ["context", "generation"] as const;
export type Side = (typeof sides)[number];
export const states = ["offered", "granted", "moving", "verifying", "done-sent"] as const;
export type State = (typeof states)[number];

export interface Cell {
  readonly fault: FaultName;
  /** Who is hit. A cut is seen by this side only; of two restarts this one comes first. */
  readonly side: Side;
  readonly state: State;
  /** The step of the generation side in which the fault is fired. */
  readonly hook: Pick<Fault, "role" | "to" | "event">;
  /** Codes that are right for those who live through it; COMPLETE needs the right bytes. */
  readonly context: RegExp;
  readonly generation: RegExp;
}

const hooks: Readonly<Record<State, Cell["hook"]>> = {
  // The pull stands before its PULL: the offer is open and nobody has asked for it.
  offered: { role: "receiver", to: "CONNECTING" },
  granted: { role: "receiver", to: "READ", event: "granted" },
  moving: { role: "receiver", to: "POSTED" },
  verifying: { role: "receiver", to: "VERIFY" },
  "done-sent": { role: "receiver", to: "DONE_WRITTEN" },
};

const COMPLETE = /^COMPLETE$/;
/** A lease that ended while its DONE was on the way: "unknown to the sender" (I5). */
const TOLD_OR_EXPIRED = /^(COMPLETE|LEASE_EXPIRED)$/;
/** The pull begins anew, or finds that its lease has ended. */
const AGAIN_OR_GONE = /^(COMPLETE|GONE|SENDER_ABORTED|PEER_LOST|NO_OFFER)$/;

function codes(fault: FaultName, side: Side, state: State): Pick<Cell, "context" | "generation"> {
  const early = state === "offered";
  const late = state === "done-sent";
  switch (fault) {
    case "kill":
      if (side === "context") {
        const alone = state === "verifying" ? /^(COMPLETE|PEER_LOST)$/ : COMPLETE;
        return { context: /^$/, generation: early ? /^(PEER_UNREACHABLE|PEER_LOST)$/ : alone };
      }
      return { context: early ? /^OFFER_EXPIRED$/ : late ? TOLD_OR_EXPIRED : /^LEASE_EXPIRED$/, generation: /^$/ };
    case "stop 150 ms":
      return { context: TOLD_OR_EXPIRED, generation: state === "verifying" ? AGAIN_OR_GONE : COMPLETE };
    case "stop 600 ms":
      if (side === "context") return { context: TOLD_OR_EXPIRED, generation: late || early ? COMPLETE : AGAIN_OR_GONE };
      if (early || late) return { context: TOLD_OR_EXPIRED, generation: COMPLETE };
      return { context: /^(COMPLETE|LEASE_EXPIRED|RECEIVER_FAILED)$/, generation: AGAIN_OR_GONE };
    case "cut":
      return { context: TOLD_OR_EXPIRED, generation: state === "verifying" ? AGAIN_OR_GONE : COMPLETE };
    case "both restarted":
      return { context: /^$/, generation: /^$/ };
  }
}

export const cells: readonly Cell[] = faults.flatMap((fault) =>
  sides.flatMap((side) =>
    states.map((state): Cell => {
      return { fault, side, state, hook: hooks[state], ...codes(fault, side, state) };
    }),
  ),
);
