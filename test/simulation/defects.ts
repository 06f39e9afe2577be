import type { Epoch, TransferId } from "../../src/ids.ts";
import { LeaseView } from "../../src/transceiver/lease_view.ts";
import { Offers } from "../../src/transceiver/offers.ts";
import { PeerLink } from "../../src/transceiver/peer_link.ts";
import { ReceiverSession } from "../../src/transceiver/receiver_session.ts";
import { receiverTable } from "../../src/transceiver/receiver_table.ts";
import { Receivers } from "../../src/transceiver/receivers.ts";
import type { SenderSession } from "../../src/transceiver/sender_session.ts";
import { senderTable } from "../../src/transceiver/sender_table.ts";
import type { Plan } from "./plan.ts";
import type { SimProcess } from "./process.ts";
import { endOfLease, otherEpochs } from "./scenes.ts";
import type { World } from "./world.ts";

/** Defects of what surrounds the sessions; the world carries them out. */
export const worldDefects = [
  "clock before poll",
  "ready before the data",
  "memory of the dead is given away",
  "renewal in two steps",
  "epochs unread at the sender",
  "epochs unread at the receiver",
] as const;
export type DefectName = (typeof worldDefects)[number];

/** The world that runs now. */
type Current = () => World;

/** A deliberate defect of lease-model.md section 6, by its number there. The others come with the slots of staged transfers. */
export interface Defect {
  readonly number: string;
  readonly what: string;
  readonly inWorld?: DefectName;
  /** So many seeds at most find it, from this one on: for the rarest it takes a thousand from 1 on. */
  readonly from?: number;
  readonly within: number;
  /** Seeds can't find it: no sender of theirs writes what it would take. */
  readonly in?: Plan;
  /** The invariants that may fall. */
  readonly by: RegExp;
  /** @returns what takes it back */
  apply?(world: Current): () => void;
}

/** Puts a function in the place of a method. */
function replace<Owner extends object, Name extends keyof Owner>(
  owner: Owner,
  name: Name,
  make: (real: Owner[Name]) => Owner[Name],
): () => void {
  const real = Object.getOwnPropertyDescriptor(owner, name);
  if (real === undefined) throw new Error(`there is no ${String(name)} to replace`);
  Object.defineProperty(owner, name, { ...real, value: make(real.value) });
  return () => Object.defineProperty(owner, name, real);
}

interface Cell {
  readonly next: string;
  readonly effects: readonly string[];
}

/** Puts a cell in the place of another, or where there was none. */
function redirect(table: object, state: string, event: string, next: string, ...effects: string[]): () => void {
  const row = (table as Record<string, Record<string, Cell | undefined>>)[state];
  if (row === undefined) throw new Error(`there is no state ${state}`);
  const before = row[event];
  row[event] = { next, effects };
  return () => {
    if (before === undefined) delete row[event];
    else row[event] = before;
  };
}

const all =
  (...undo: (() => void)[]) =>
  (): void => {
    for (const one of undo) one();
  };

const clockOf = (world: World, session: ReceiverSession): number =>
  world.transfers.pulls.find((pull) => pull.session === session)?.process.clock.nowMs() ?? 0;

const openSessions = ({ offers }: SimProcess): SenderSession[] =>
  [...offers.live].flatMap(({ sessions }) => sessions).filter(({ state }) => state !== "END");

/** What a sender must not do on a word that is not the reader's own. */
const freeing = (): (() => void) =>
  redirect(senderTable, "GRANT", "helloWithout", "END", "stopTransferTimer", "dropLease", "settleCause");

const MOST_RENEWALS = 5000;

export const defects: readonly Defect[] = [
  {
    number: "1",
    from: 200,
    within: 100,
    by: /I2/,
    what: "the receiver counts from the arrival of RENEWED",
    apply: (world) =>
      replace(
        ReceiverSession.prototype,
        "renewed",
        (real) =>
          function (this: ReceiverSession) {
            real.call(this, clockOf(world(), this));
          },
      ),
  },
  {
    number: "2",
    within: 100,
    by: /I2/,
    what: "the sender frees on connection loss",
    apply: (world) =>
      all(
        freeing(),
        replace(
          Receivers.prototype,
          "gone",
          (real) =>
            function (this: Receivers, receiver, connection) {
              real.call(this, receiver, connection);
              const process = [...world().processes].find(({ receivers }) => receivers === this);
              if (process === undefined || process.dead) return;
              for (const session of openSessions(process)) if (session.receiver === receiver) session.helloWithout();
            },
        ),
      ),
  },
  {
    number: "4",
    within: 100,
    by: /I2/,
    what: "COMPLETE after a stop without looking at the clock",
    apply: () => replace(LeaseView.prototype, "accepts", () => () => true),
  },
  {
    number: "5",
    within: 100,
    by: /I2/,
    what: "the sender's cancel frees at once",
    apply: () =>
      redirect(
        senderTable,
        "GRANT",
        "cancel",
        "END",
        "noteCause",
        "stopTransferTimer",
        "writeAbort",
        "dropLease",
        "settleCause",
      ),
  },
  {
    number: "6",
    from: 315,
    within: 100,
    by: /I2/,
    what: "the clock is read before the poll",
    inWorld: "clock before poll",
  },
  {
    number: "7",
    within: 0,
    in: endOfLease,
    by: /I2/,
    what: "RENEWED is written before it is decided that the lease is held",
    inWorld: "renewal in two steps",
  },
  {
    number: "7, cruder",
    from: 65,
    within: 100,
    by: /I2/,
    what: "RENEWED for a lease that has ended",
    apply: (world) =>
      replace(
        Receivers.prototype,
        "write",
        (real) =>
          function (this: Receivers, receiver, frame) {
            if (frame.type !== "RENEWED") return real.call(this, receiver, frame);
            const ended = world()
              .transfers.all.flatMap(({ sendings }) => sendings)
              .filter(({ process }) => process.receivers === this)
              .flatMap(({ offer }) => offer.sessions)
              .filter((session) => session.state === "END" && session.receiver === receiver)
              .flatMap(({ transferId }) => transferId ?? []);
            return real.call(this, receiver, { ...frame, ids: [...frame.ids, ...ended] });
          },
      ),
  },
  {
    number: "8",
    from: 270,
    within: 100,
    by: /I6/,
    what: "the transferId is not checked, at the receiver",
    apply: () =>
      replace(
        ReceiverSession.prototype,
        "granted",
        (real) =>
          function (this: ReceiverSession, frame) {
            real.call(this, { ...frame, transferId: this.renewing ?? frame.transferId });
          },
      ),
  },
  {
    number: "9",
    within: 100,
    by: /I2|I6|I7/,
    what: "the sender does not look at epochs",
    inWorld: "epochs unread at the sender",
  },
  {
    number: "9",
    within: 0,
    in: otherEpochs,
    by: /I6/,
    what: "the receiver does not look at epochs",
    inWorld: "epochs unread at the receiver",
  },
  {
    number: "10",
    from: 1200,
    within: 100,
    by: /I2/,
    what: "HELLO without connection number: an old one ends a new attempt",
    apply: () =>
      replace(
        Receivers.prototype,
        "welcome",
        (real) =>
          function (this: Receivers, receiver, connection) {
            real.call(this, receiver, connection);
            return true;
          },
      ),
  },
  {
    number: "11",
    within: 100,
    by: /I3/,
    what: "a retry while an old read still runs",
    apply: () => redirect(receiverTable, "RETRY", "linkUp", "PULL", "nextAttempt", "pull"),
  },
  {
    number: "12",
    within: 100,
    by: /I3/,
    what: "the receiver frees at cancel",
    apply: () => redirect(receiverTable, "READ", "cancel", "DRAIN", "fail", "writeDone", "release", "drain"),
  },
  { number: "15", within: 100, by: /I1|I2/, what: "READY before the data", inWorld: "ready before the data" },
  {
    number: "16",
    within: 100,
    by: /I5/,
    what: "DONE is handled again after the end",
    apply: (world) =>
      all(
        redirect(senderTable, "END", "done", "END", "settleByReceiver"),
        replace(
          Offers.prototype,
          "done",
          (real) =>
            function (this: Offers, receiver, frame) {
              const sessions = world()
                .transfers.all.flatMap(({ sendings }) => sendings)
                .filter(({ process }) => process.offers === this)
                .flatMap(({ offer }) => offer.sessions);
              const over = sessions.find(({ state, transferId }) => state === "END" && transferId === frame.transferId);
              if (over === undefined) real.call(this, receiver, frame);
              else over.receiverDone(frame);
            },
        ),
      ),
  },
  {
    number: "17",
    from: 70,
    within: 100,
    by: /I2/,
    what: "HELLO of another receiver epoch frees a lease",
    apply: (world) =>
      all(
        freeing(),
        replace(
          Offers.prototype,
          "hello",
          (real) =>
            function (this: Offers, receiver, live) {
              real.call(this, receiver, live);
              const processes = [...world().processes];
              const seatOf = (epoch: Epoch) => processes.find((process) => process.epoch === epoch)?.seat;
              const process = processes.find(({ offers }) => offers === this);
              if (process === undefined) return;
              for (const session of openSessions(process)) {
                if (session.receiver === receiver || session.receiver === null) continue;
                // A new process in the place of the reader.
                if (seatOf(session.receiver) === seatOf(receiver)) session.helloWithout();
              }
            },
        ),
      ),
  },
  {
    number: "19",
    from: 5380,
    within: 100,
    by: /I2/,
    what: "the receiver's view is as long as the sender's lease, with drift",
    apply: () =>
      replace(
        LeaseView.prototype,
        "holds",
        (real) =>
          function (this: LeaseView, nowMs) {
            return real.call(this, nowMs - 0.05 * this.leaseMs);
          },
      ),
  },
  {
    number: "20",
    within: 100,
    by: /I2/,
    what: "the memory of a crashed sender is given away, without STRICT",
    inWorld: "memory of the dead is given away",
  },
  {
    number: "22",
    from: 1120,
    within: 100,
    by: /I2/,
    what: "the base is taken from a RENEW that GRANT does not name",
    apply: () =>
      all(
        replace(
          PeerLink.prototype,
          "renewalMs",
          (real) =>
            function (this: PeerLink, seq) {
              for (let last = MOST_RENEWALS; last > seq; last--) {
                const writtenMs = real.call(this, last);
                if (writtenMs !== undefined) return writtenMs;
              }
              return real.call(this, seq);
            },
        ),
        replace(
          ReceiverSession.prototype,
          "granted",
          (real) =>
            function (this: ReceiverSession, frame) {
              real.call(this, { ...frame, seq: Math.max(1, frame.seq) });
            },
        ),
      ),
  },
  {
    number: "23",
    within: 100,
    by: /I5/,
    what: "a cancelled session still completes",
    apply: () => redirect(receiverTable, "READ", "cancel", "READ", "fail"),
  },
  {
    number: "24",
    within: 100,
    by: /I2/,
    what: "`live` of HELLO omits an attempt that is still read",
    apply: () => {
      const real = Object.getOwnPropertyDescriptor(ReceiverSession.prototype, "live");
      if (real === undefined) throw new Error("there is no live");
      Object.defineProperty(ReceiverSession.prototype, "live", {
        ...real,
        get(this: ReceiverSession): TransferId | null {
          return this.state === "FINISH" ? null : (real.get?.call(this) ?? null);
        },
      });
      return () => Object.defineProperty(ReceiverSession.prototype, "live", real);
    },
  },
];
