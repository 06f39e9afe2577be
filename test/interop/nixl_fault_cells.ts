import type { Fault } from "../integration/transceiver/peer_process.ts";
import type { Place } from "./namespaces.ts";

const faults = ["kill", "stop", "link down"] as const;
const states = ["offered", "granted", "moving", "done-sent"] as const;

export interface NixlCell {
  readonly fault: (typeof faults)[number];
  /** Who is killed or stopped, or whose end of the link goes down. */
  readonly side: Place;
  readonly state: (typeof states)[number];
  /** The step of the generation side in which it is fired, as in test/integration/faults/cells.ts. */
  readonly hook: Pick<Fault, "role" | "to" | "event">;
  /** Codes that are right for those who live through it; COMPLETE needs the right bytes. */
  readonly context: RegExp;
  readonly generation: RegExp;
}

const hooks: Readonly<Record<NixlCell["state"], NixlCell["hook"]>> = {
  offered: { role: "receiver", to: "CONNECTING" },
  granted: { role: "receiver", to: "READ", event: "granted" },
  moving: { role: "receiver", to: "POSTED" },
  "done-sent": { role: "receiver", to: "DONE_WRITTEN" },
};

/** Bytes that come through a network end with their sender: unlike a mapping's (test/integration/faults), no read of a dead one completes. */
const LOST = /^(PEER_LOST|PEER_UNREACHABLE|COPY_FAILED|TRANSFER_TIMEOUT|QUEUE_TIMEOUT|NO_PATH)$/;
/** It may have had all before, or come again in time. */
const LOST_OR_THERE =
  /^(COMPLETE|PEER_LOST|PEER_UNREACHABLE|COPY_FAILED|GONE|SENDER_ABORTED|NO_OFFER|TRANSFER_TIMEOUT|QUEUE_TIMEOUT|NO_PATH)$/;
const TOLD_OR_NOT = /^(COMPLETE|LEASE_EXPIRED|OFFER_EXPIRED|RECEIVER_FAILED)$/;
const COMPLETE = /^COMPLETE$/;

export const cells: readonly NixlCell[] = faults.flatMap((fault) =>
  (["context", "generation"] as const).flatMap((side) =>
    states.map((state): NixlCell => {
      const late = state === "done-sent";
      const dead = fault === "kill" && side === "context";
      const generation = late ? COMPLETE : dead ? LOST : LOST_OR_THERE;
      return { fault, side, state, hook: hooks[state], context: TOLD_OR_NOT, generation };
    }),
  ),
);
