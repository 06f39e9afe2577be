import type { Cell, TransitionTable } from "./transition.ts";

/**
 * The sender's session (lease-model.md section 2). What becomes of staging slots while it is granted is a table of the data plane
 * (native/paths/slot_table.h): here they only matter when one is kept too long.
 * NONE no session · OFFER pinned, nobody reads · GRANT a receiver may read · ENDING this side wants to end, the receiver may still read ·
 * END over, blocks released, outcome told.
 * WAIT, for a PULL that came before its offer, is a table of its own: `waitTable`.
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
  "digested",
  /** A slot was sent and is not returned within stallMs, whatever was renewed. */
  "slotStalled",
  // The caller and the timers.
  "progress",
  "prefillEnded",
  /** Prefill has ended, and its first token is known (generation-first). */
  "finished",
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
  | "writeFinished"
  | "askDigests"
  | "writeDigests"
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
  | "noteStall"
  | "countDropped"
  | Refusal;

export type Refusal =
  | "refuseNoOffer"
  | "refuseGone"
  | "refuseBusy"
  | "refuseBadToken"
  | "refuseLayout"
  | "refuseDraining"
  | "refuseQueueTimeout";

const to = (next: SenderState, ...effects: SenderEffect[]): Cell<SenderState, SenderEffect> => ({ next, effects });

/** Refused in every state of an offer, and nothing else changes. */
const refusedIn = (state: SenderState) => ({
  pullBadToken: to(state, "refuseBadToken"),
  pullLayout: to(state, "refuseLayout"),
});
/** What makes a sender drain ends every offer in the same step: none is in OFFER or GRANT then. */
const refusedWhenDraining = (state: SenderState) => ({ pullDraining: to(state, "refuseDraining") });

export const senderTable = {
  NONE: {
    send: to("OFFER", "pin"),
    ...refusedWhenDraining("NONE"),
    pull: to("NONE", "refuseNoOffer"),
  },
  OFFER: {
    ...refusedIn("OFFER"),
    // The lease starts on the owner thread after this GRANT was written: later than the receiver counts from, and nothing is released before it.
    pull: to(
      "GRANT",
      "stopOfferTimer",
      "bindReader",
      "grantLease",
      "writeGrant",
      "writeFinished",
      "startTransferTimer",
      "askDigests",
    ),
    pullRepeated: to("OFFER", "countDropped"),
    // Other ranks of the instance that asks first are served.
    pullOther: to("OFFER", "refuseBusy"),
    // Of a reader that fell back to OFFER: its id is not held, and nothing it says ends the offer.
    renew: to("OFFER"),
    done: to("OFFER", "countDropped"),
    helloWithout: to("OFFER"),
    progress: to("OFFER"),
    prefillEnded: to("OFFER", "noteOfferEnd", "startOfferTimer"),
    finished: to("OFFER", "noteOfferEnd", "startOfferTimer"),
    cancel: to("END", "stopOfferTimer", "settleCause"),
    offerTimer: to("END", "settleOfferExpired"),
  },
  GRANT: {
    ...refusedIn("GRANT"),
    pullHigher: to(
      "GRANT",
      "dropLease",
      "bindReader",
      "grantLease",
      "writeGrant",
      "writeFinished",
      "startTransferTimer",
      "askDigests",
    ),
    pullRepeated: to("GRANT", "countDropped"),
    pullOther: to("GRANT", "refuseBusy"),
    renew: to("GRANT", "extendLease"),
    renewed: to("GRANT", "confirmHeld"),
    done: to("END", "stopTransferTimer", "dropLease", "settleByReceiver"),
    helloWithout: to("OFFER", "stopTransferTimer", "dropLease", "resumeOfferTimer"),
    leaseOver: to("END", "stopTransferTimer", "writeAbort", "settleLeaseExpired"),
    progress: to("GRANT", "writeReady", "restartTransferTimer", "askDigests"),
    prefillEnded: to("GRANT", "noteOfferEnd", "writeReady", "restartTransferTimer", "askDigests"),
    finished: to("GRANT", "noteOfferEnd", "writeFinished", "restartTransferTimer", "askDigests"),
    digested: to("GRANT", "writeDigests"),
    cancel: to("ENDING", "stopTransferTimer", "writeAbort"),
    transferTimer: to("ENDING", "noteCause", "writeAbort"),
    slotStalled: to("ENDING", "noteStall", "stopTransferTimer", "writeAbort"),
  },
  ENDING: {
    ...refusedIn("ENDING"),
    ...refusedWhenDraining("ENDING"),
    pullHigher: to("END", "refuseGone", "dropLease", "settleCause"),
    pullRepeated: to("ENDING", "countDropped"),
    pullOther: to("ENDING", "refuseBusy"),
    renew: to("ENDING"),
    renewed: to("ENDING"),
    done: to("END", "dropLease", "settleByReceiver"),
    helloWithout: to("END", "dropLease", "settleCause"),
    leaseOver: to("END", "settleCause"),
    slotStalled: to("ENDING"),
    progress: to("ENDING"),
    prefillEnded: to("ENDING"),
    finished: to("ENDING"),
    cancel: to("ENDING"),
  },
  END: {
    ...refusedIn("END"),
    ...refusedWhenDraining("END"),
    pull: to("END", "refuseGone"),
    pullRepeated: to("END", "refuseGone"),
    pullOther: to("END", "refuseGone"),
    progress: to("END"),
    prefillEnded: to("END"),
    finished: to("END"),
  },
} as const satisfies TransitionTable<SenderState, SenderEvent, SenderEffect>;

/** Nothing may be granted and no block given back while one of these runs. */
export const leasedStates: ReadonlySet<SenderState> = new Set<SenderState>(["GRANT", "ENDING"]);

/**
 * A PULL without a token that came before its offer (generation-first): NONE not here · WAIT kept until send() · END answered, or handed to the
 * offer, where it is a PULL in OFFER that names the RENEW heard last. It has no lease and pins nothing.
 */
export const waitStates = ["NONE", "WAIT", "END"] as const;
export type WaitState = (typeof waitStates)[number];

export const waitEvents = [
  // A PULL for the same request and reader rank, after layout and attempt were compared.
  "pull",
  /** Of another receiver epoch, or a higher attempt. */
  "pullReplaces",
  "pullRepeated",
  "pullLayout",
  // Other frames whose epochs and transfer id are those that wait.
  "renew",
  "done",
  "helloWithout",
  // The caller and the timer.
  "send",
  "cancel",
  "drain",
  "queueTimer",
] as const;
export type WaitEvent = (typeof waitEvents)[number];

export type WaitEffect =
  | "bindReader"
  | "startQueueTimer"
  | "noteRenewal"
  | "endWait"
  | "countDropped"
  | "refuseGone"
  | "refuseLayout"
  | "refuseDraining"
  | "refuseQueueTimeout";

const waitTo = (next: WaitState, ...effects: WaitEffect[]): Cell<WaitState, WaitEffect> => ({ next, effects });

export const waitTable = {
  NONE: {
    pull: waitTo("WAIT", "bindReader", "startQueueTimer"),
  },
  WAIT: {
    pullReplaces: waitTo("WAIT", "bindReader", "startQueueTimer"),
    pullRepeated: waitTo("WAIT", "countDropped"),
    pullLayout: waitTo("WAIT", "refuseLayout"),
    renew: waitTo("WAIT", "noteRenewal"),
    done: waitTo("END", "endWait"),
    helloWithout: waitTo("END", "endWait"),
    send: waitTo("END", "endWait"),
    cancel: waitTo("END", "endWait", "refuseGone"),
    drain: waitTo("END", "endWait", "refuseDraining"),
    queueTimer: waitTo("END", "endWait", "refuseQueueTimeout"),
  },
  END: {},
} as const satisfies TransitionTable<WaitState, WaitEvent, WaitEffect>;
