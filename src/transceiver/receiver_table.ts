import type { Cell, TransitionTable } from "./transition.ts";

/**
 * The receiver's session (lease-model.md section 3), for reads that go straight into its blocks.
 * QUEUED waits for a turn · CONNECTING waits for the link to the sender · PULL asked, no answer yet · READ granted · FINISH granted, the
 * connection is gone, all reads are posted: they may end inside the view · ORPHAN the sender died with the lease held: its blocks stay as they are ·
 * VERIFY all is read, digests are compared · RETRY waits until a new attempt may start · DRAIN the outcome is told, reads may still touch the blocks (I3) · END blocks given back.
 */
export const receiverStates = [
  "QUEUED",
  "CONNECTING",
  "PULL",
  "READ",
  "FINISH",
  "ORPHAN",
  "VERIFY",
  "RETRY",
  "DRAIN",
  "END",
] as const;
export type ReceiverState = (typeof receiverStates)[number];

export const receiverEvents = [
  "turn",
  // The link.
  "linkUp",
  /** After a cut that digests were lost with. */
  "linkUpBlind",
  "linkLost",
  "linkLostAllPosted",
  "linkFailed",
  "staleEpoch",
  "senderDead",
  /** Seen when the view of the lease had passed. */
  "senderDeadLate",
  // Frames of this attempt.
  "granted",
  "ready",
  /** All is announced, and the first tokens are here (generation-first). */
  "finished",
  /** The sender's sequence is another one than ours. */
  "mismatched",
  "renewed",
  "leaseLost",
  "refused",
  "refusedBusy",
  "aborted",
  // Reads of this attempt, judged by the view after the poll that saw their end; `readQuiet` comes for those of every attempt.
  "pieceAccepted",
  "allAccepted",
  "pieceLate",
  "readFailed",
  "readQuiet",
  "quiet",
  "orphanShort",
  // Digests, when some are to be compared.
  "allRead",
  "digests",
  "digestsEqual",
  "digestsDiffer",
  "digestsDifferAgain",
  // A new attempt.
  "retryTimer",
  "canPull",
  "exhausted",
  // The caller and the timers.
  "cancel",
  "queueTimer",
  "transferTimer",
  "stalled",
] as const;
export type ReceiverEvent = (typeof receiverEvents)[number];

export type ReceiverEffect =
  | "joinLink"
  | "pull"
  | "nextAttempt"
  | "takeGrant"
  | "postReads"
  | "takeBase"
  | "renewNow"
  | "acceptOrphans"
  | "checkOrphan"
  | "askDigests"
  | "compareDigests"
  | "voidAttempt"
  | "tryAgain"
  | "startQueueTimer"
  | "stopQueueTimer"
  | "startTransferTimer"
  | "restartTransferTimer"
  | "tellProgress"
  | "complete"
  | "fail"
  | "writeDone"
  | "decline"
  | "drain"
  | "release";

const to = (next: ReceiverState, ...effects: ReceiverEffect[]): Cell<ReceiverState, ReceiverEffect> => ({
  next,
  effects,
});

/** The caller has its answer at once; `drain` leaves link and queue and ends when no read can touch the blocks. */
const failQuietly = to("DRAIN", "fail", "drain");
/** The sender knows this attempt, so it hears that we read no more. */
const failAloud = to("DRAIN", "fail", "writeDone", "drain");
/**
 * It has not asked, or nobody knows whether the sender heard it, and it never will again: the sender may let the blocks go. By a timer
 * nobody is told: another worker may still fetch them.
 */
const failDeclining = to("DRAIN", "fail", "decline", "drain");
const completeNow = to("DRAIN", "complete", "writeDone", "drain");
const verifyNow = to("VERIFY", "tellProgress", "askDigests");
const again = to("RETRY", "voidAttempt", "startQueueTimer", "tryAgain");
/** Nothing is read yet, and the queue timer runs. */
const askAgain = to("RETRY", "tryAgain");
/** All is read, digests decide. */
const readAgain = to("RETRY", "startQueueTimer", "tryAgain");

export const receiverTable = {
  QUEUED: {
    turn: to("CONNECTING", "joinLink"),
    cancel: failDeclining,
    queueTimer: failQuietly,
  },
  CONNECTING: {
    linkUp: to("PULL", "pull"),
    linkLost: to("CONNECTING"),
    linkFailed: failQuietly,
    staleEpoch: failQuietly,
    senderDead: failQuietly,
    cancel: failDeclining,
    queueTimer: failQuietly,
  },
  PULL: {
    granted: to("READ", "takeGrant", "stopQueueTimer", "startTransferTimer", "postReads"),
    renewed: to("PULL"),
    leaseLost: failAloud,
    refused: failQuietly,
    refusedBusy: askAgain,
    aborted: failAloud,
    linkLost: askAgain,
    staleEpoch: failQuietly,
    senderDead: failQuietly,
    cancel: failAloud,
    queueTimer: failAloud,
    transferTimer: failAloud,
  },
  READ: {
    ready: to("READ", "restartTransferTimer", "postReads"),
    // It had let its turn go while it waited for prefill.
    turn: to("READ", "postReads"),
    finished: to("READ", "restartTransferTimer", "postReads"),
    mismatched: failAloud,
    renewed: to("READ", "takeBase"),
    leaseLost: failAloud,
    aborted: failAloud,
    linkLost: again,
    linkLostAllPosted: to("FINISH"),
    staleEpoch: failQuietly,
    senderDead: to("ORPHAN", "acceptOrphans"),
    senderDeadLate: failQuietly,
    pieceAccepted: to("READ", "tellProgress"),
    allAccepted: completeNow,
    allRead: verifyNow,
    pieceLate: to("READ", "renewNow"),
    readFailed: failAloud,
    readQuiet: to("READ"),
    cancel: failAloud,
    transferTimer: failAloud,
    stalled: failAloud,
  },
  FINISH: {
    linkUp: to("READ"),
    linkUpBlind: again,
    linkLost: to("FINISH"),
    // Without a link the view alone decides, until it has passed.
    linkFailed: to("FINISH"),
    staleEpoch: to("FINISH"),
    // No read of it is late: one that was would have ended FINISH.
    senderDead: to("ORPHAN"),
    senderDeadLate: failQuietly,
    pieceAccepted: to("FINISH", "tellProgress"),
    allAccepted: completeNow,
    allRead: verifyNow,
    // Its read is quiet next, and then it is tried again.
    pieceLate: to("RETRY", "voidAttempt", "startQueueTimer"),
    readFailed: failAloud,
    readQuiet: to("FINISH"),
    cancel: failAloud,
    transferTimer: failAloud,
    stalled: failAloud,
  },
  ORPHAN: {
    pieceAccepted: to("ORPHAN", "tellProgress", "checkOrphan"),
    allAccepted: to("DRAIN", "complete", "drain"),
    allRead: verifyNow,
    orphanShort: failQuietly,
    readFailed: failQuietly,
    readQuiet: to("ORPHAN"),
    cancel: failQuietly,
    transferTimer: failQuietly,
    stalled: failQuietly,
  },
  VERIFY: {
    digests: to("VERIFY", "compareDigests"),
    digestsEqual: completeNow,
    digestsDiffer: readAgain,
    digestsDifferAgain: failAloud,
    renewed: to("VERIFY"),
    leaseLost: failAloud,
    aborted: failAloud,
    // The link's events come only while digests of the sender are missing: no new connection brings those that were lost with the old.
    linkLost: to("VERIFY"),
    linkUp: readAgain,
    linkFailed: failQuietly,
    staleEpoch: failQuietly,
    senderDead: failQuietly,
    readQuiet: to("VERIFY"),
    cancel: failAloud,
    transferTimer: failAloud,
    stalled: failAloud,
  },
  RETRY: {
    linkUp: to("RETRY", "tryAgain"),
    linkLost: to("RETRY"),
    linkFailed: failQuietly,
    staleEpoch: failQuietly,
    senderDead: failQuietly,
    readQuiet: to("RETRY", "tryAgain"),
    retryTimer: to("RETRY", "tryAgain"),
    canPull: to("PULL", "nextAttempt", "pull"),
    exhausted: failAloud,
    cancel: failDeclining,
    queueTimer: failAloud,
    transferTimer: failAloud,
  },
  DRAIN: {
    readQuiet: to("DRAIN", "drain"),
    quiet: to("END", "release"),
  },
  END: {},
} as const satisfies TransitionTable<ReceiverState, ReceiverEvent, ReceiverEffect>;

/** Ids of these stand in RENEW: the sender may hold a lease for them. */
export const renewingStates: ReadonlySet<ReceiverState> = new Set<ReceiverState>(["PULL", "READ", "FINISH", "VERIFY"]);
