import type { Cell, TransitionTable } from "./transition.ts";

/**
 * The sender's session (lease-model.md section 2), for reads that go straight from its blocks.
 * NONE no session · OFFER pinned, nobody reads · GRANT a receiver may read · ENDING this side wants to end, the receiver may still read ·
 * END over, blocks released, outcome told.
 * A lost connection, a silent peer and the HELLO of another receiver epoch are no events: they change nothing here (I2).
 */
export const senderStates = ["NONE", "OFFER", "GRANT", "ENDING", "END"] as const;
export type SenderState = (typeof senderStates)[number];

export const senderEvents = [
  "send",
  // A PULL, after token, layout, reader and attempt were compared.
  "pull",
  "pullHigher",
  "pullRepeated",
  "pullOther",
  "pullBadToken",
  "pullLayout",
  "pullDraining",
  // Other frames whose epochs and transfer id are the session's.
  "renew",
  "done",
  "helloWithout",
  // Completions of the data plane.
  "renewed",
  "leaseOver",
  // The caller and the timers.
  "progress",
  "prefillEnded",
  "cancel",
  "offerTimer",
  "transferTimer",
] as const;
export type SenderEvent = (typeof senderEvents)[number];

export type SenderEffect =
  | "pin"
  | "bindReader"
  | "grantLease"
  | "extendLease"
  | "confirmHeld"
  | "dropLease"
  | "writeGrant"
  | "writeReady"
  | "writeAbort"
  | "startOfferTimer"
  | "noteOfferEnd"
  | "stopOfferTimer"
  | "resumeOfferTimer"
  | "startTransferTimer"
  | "restartTransferTimer"
  | "stopTransferTimer"
  | "settleByReceiver"
  | "settleCause"
  | "settleOfferExpired"
  | "settleLeaseExpired"
  | "noteCause"
  | "countDropped"
  | Refusal;

export type Refusal =
  | "refuseNoOffer"
  | "refuseGone"
  | "refuseBusy"
  | "refuseBadToken"
  | "refuseLayout"
  | "refuseDraining";

const to = (next: SenderState, ...effects: SenderEffect[]): Cell<SenderState, SenderEffect> => ({ next, effects });

/** Refused in every state, and nothing else changes. */
const refusedIn = (state: SenderState) => ({
  pullBadToken: to(state, "refuseBadToken"),
  pullLayout: to(state, "refuseLayout"),
  pullDraining: to(state, "refuseDraining"),
});

export const senderTable = {
  NONE: {
    send: to("OFFER", "pin"),
    pull: to("NONE", "refuseNoOffer"),
    pullDraining: to("NONE", "refuseDraining"),
  },
  OFFER: {
    ...refusedIn("OFFER"),
    // The lease starts on the owner thread after this GRANT was written: later than the receiver counts from, and nothing is released before it.
    pull: to("GRANT", "stopOfferTimer", "bindReader", "grantLease", "writeGrant", "startTransferTimer"),
    pullRepeated: to("OFFER", "countDropped"),
    // Of a reader that fell back to OFFER: its id is not held, and nothing it says ends the offer.
    renew: to("OFFER"),
    done: to("OFFER", "countDropped"),
    helloWithout: to("OFFER"),
    progress: to("OFFER"),
    prefillEnded: to("OFFER", "noteOfferEnd", "startOfferTimer"),
    cancel: to("END", "noteCause", "stopOfferTimer", "settleCause"),
    offerTimer: to("END", "settleOfferExpired"),
  },
  GRANT: {
    ...refusedIn("GRANT"),
    pullHigher: to(
      "GRANT",
      "stopTransferTimer",
      "dropLease",
      "bindReader",
      "grantLease",
      "writeGrant",
      "startTransferTimer",
    ),
    pullRepeated: to("GRANT", "countDropped"),
    pullOther: to("GRANT", "refuseBusy"),
    renew: to("GRANT", "extendLease"),
    renewed: to("GRANT", "confirmHeld"),
    done: to("END", "stopTransferTimer", "dropLease", "settleByReceiver"),
    helloWithout: to("OFFER", "stopTransferTimer", "dropLease", "resumeOfferTimer"),
    leaseOver: to("END", "stopTransferTimer", "writeAbort", "settleLeaseExpired"),
    progress: to("GRANT", "writeReady", "restartTransferTimer"),
    prefillEnded: to("GRANT", "noteOfferEnd", "writeReady", "restartTransferTimer"),
    cancel: to("ENDING", "noteCause", "stopTransferTimer", "writeAbort"),
    transferTimer: to("ENDING", "noteCause", "writeAbort"),
  },
  ENDING: {
    ...refusedIn("ENDING"),
    pullHigher: to("END", "refuseGone", "dropLease", "settleCause"),
    pullRepeated: to("ENDING", "countDropped"),
    pullOther: to("ENDING", "refuseBusy"),
    renew: to("ENDING"),
    renewed: to("ENDING"),
    done: to("END", "dropLease", "settleByReceiver"),
    helloWithout: to("END", "dropLease", "settleCause"),
    leaseOver: to("END", "settleCause"),
    progress: to("ENDING"),
    prefillEnded: to("ENDING"),
    cancel: to("ENDING"),
  },
  END: {
    ...refusedIn("END"),
    pull: to("END", "refuseGone"),
    pullRepeated: to("END", "refuseGone"),
    progress: to("END"),
    prefillEnded: to("END"),
  },
} as const satisfies TransitionTable<SenderState, SenderEvent, SenderEffect>;

/** Nothing may be granted and no block given back while one of these runs. */
export const leasedStates: ReadonlySet<SenderState> = new Set<SenderState>(["GRANT", "ENDING"]);
