import { type BlockId, newEpoch } from "../../src/ids.ts";
import { type FaultDecision, type FaultKind, type Place, rareFaults } from "./plan.ts";
import type { SimProcess } from "./process.ts";
import type { Pull } from "./transfers.ts";
import type { World } from "./world.ts";

interface Struck {
  readonly world: World;
  readonly process: SimProcess;
  /** What the trigger was about. */
  readonly request: string | null;
  /** In [0, 1]. */
  readonly size: number;
  /** Most that lasts ends when calm comes. */
  lasting(leases: number): number;
}

/** Of the `items`, the one that the size picks. */
const picked = <T>(items: readonly T[], size: number): T | undefined =>
  items[Math.min(items.length - 1, Math.floor(size * items.length))];

/** How each kind of fault is carried out. Some strike at once, so that they meet what the step at hand is about to do: its read, its frames. */
const strikes: Readonly<Record<FaultKind, (struck: Struck) => void>> = {
  cut: ({ process, size }) => {
    const { connections } = process;
    if (size < 0.7) for (const connection of connections) connection.cut();
    else picked(connections, (size - 0.7) / 0.3)?.cut();
  },
  "half open": ({ process, size }) => {
    picked(process.connections, size)?.silence();
  },
  // Stalled one way.
  mute: ({ process, size, lasting }) => {
    for (const connection of process.connections) connection.stall(connection.endOf(process), lasting(3 * size));
  },
  deaf: ({ process, size, lasting }) => {
    for (const connection of process.connections) {
      connection.stall(connection.otherEnd(connection.endOf(process)), lasting(3 * size));
    }
  },
  // As the model has it: a cut loses all but one, which arrives on the connection that follows.
  "late frame": ({ world, process, size }) => {
    for (const connection of process.connections) {
      const late = connection.underWay();
      connection.cut();
      const { left, right } = connection;
      for (const [side, bytes] of late) {
        world.time.after((5 + 40 * size) * world.delays.network, () => {
          const next = process.connections.find(
            (one) => one.left.owner === left.owner && one.right.owner === right.owner,
          );
          if (next !== undefined) world.arriveLate(side === left ? next.right : next.left, bytes);
        });
      }
    }
  },
  duplicate: ({ process, size }) => {
    for (const { left, right } of process.connections) {
      left.connection.double(left, 1 + Math.floor(4 * size));
      right.connection.double(right, 1 + Math.floor(4 * size));
    }
  },
  "refuse dial": ({ process, lasting, size }) => {
    process.refusedUntil = lasting(2 * size);
  },
  // HELLO arrives about when both sides give the handshake up, which is a second for any lease: perhaps after the one that follows it.
  "stall dial": ({ world, process, size }) => {
    process.stalledDialUntil = Math.min(world.time.now + 950 + 120 * size, world.calmAt);
  },
  stop: ({ world, process, lasting, size }) => {
    if (process.dead || process.stopped) return;
    // A guest that is paused, where clocks are that bad.
    process.stop(world.plan.clocks === "bad" && size > 0.5);
    world.time.at(lasting(2.5 * size), () => process.resume());
  },
  kill: ({ world, process, lasting, size }) => {
    if (process.dead) return;
    process.kill();
    if (!world.deathsAreSeen || world.defects.has("memory of the dead is given away")) process.memory.spoil();
    world.time.at(lasting(size), () => world.start(process.seat));
  },
  // A new process stands at its address while the old one is only stopped: it goes on later, with the leases that it was granted.
  replace: ({ world, process, lasting, size }) => {
    if (process.dead || process.stopped) return;
    process.stop(false);
    world.start(process.seat);
    world.time.at(lasting(2.5 * size), () => process.resume());
  },
  "cancel send": ({ world, process, size, request }) => {
    const open = world.transfers.all.flatMap(({ sendings }) => sendings).filter((one) => one.process === process);
    const sending = open.find(({ transfer }) => transfer.request === request) ?? picked(open, size);
    if (sending !== undefined) process.soon(() => sending.offer.cancel("by the simulation"));
  },
  "cancel receive": ({ world, process, size, request }) => {
    const open = world.transfers.pulls.filter((one) => one.process === process);
    const pull = open.find(({ transfer }) => transfer.request === request) ?? picked(open, size);
    if (pull !== undefined) process.soon(() => pull.session.cancel("by the simulation"));
  },
  // As close() does: a transceiver that ends takes no PULL any more. It stays; a new one would follow at its address.
  drain: ({ process }) =>
    process.soon(() => {
      process.draining = true;
      process.offers.cancelAll("closing");
    }),
  "hang read": ({ process }) => {
    process.plane.faults.hang = 1;
  },
  "fail read": ({ process }) => {
    process.plane.faults.fail = 1;
  },
  "slow read": ({ process, size }) => {
    process.plane.faults.slow = 1 + Math.floor(6 * size);
  },
  "slow digest": ({ process, size }) => {
    process.plane.faults.digest = 1 + Math.floor(3 * size);
  },
  "flip byte": ({ process, size }) => {
    process.plane.faults.flip = 1 + Math.floor(2 * size);
  },
  "starve owner": ({ process, lasting, size }) => {
    process.plane.starve(lasting(2 * size));
  },
  "keep slot": ({ process }) => process.plane.stallSlots(),
  "early renewal": ({ process }) => {
    process.confirmsWaiting = true;
  },
  "early abort": ({ world, process, request }) => {
    for (const { process: reader, session } of readersOf(world, request)) {
      const { epoch: re } = reader;
      if (session.renewing === null) continue;
      const head = { se: process.epoch, re, transferId: session.renewing };
      process.receivers.write(re, { type: "ABORT", ...head, code: "FAILED", text: "by the simulation" });
    }
  },
  "frames of another epoch": ({ world, process, request }) => {
    for (const { process: reader, session, blocks } of readersOf(world, request)) {
      const { epoch: re } = reader;
      const { renewing: transferId } = session;
      if (transferId === null) continue;
      const head = { se: newEpoch(), re, transferId };
      process.receivers.write(re, {
        type: "GRANT",
        ...head,
        seq: 0,
        leaseMs: 1,
        path: "none",
        blocks: [...blocks] as BlockId[],
        ready: 0,
      });
      process.receivers.write(re, { type: "READY", ...head, tokens: 1000 });
      process.receivers.write(re, { type: "ABORT", ...head, code: "FAILED", text: "by the simulation" });
      process.receivers.write(re, {
        type: "ABORT",
        ...head,
        se: process.epoch,
        re: newEpoch(),
        code: "FAILED",
        text: "by the simulation",
      });
    }
  },
  "stale epoch": ({ world, process, request }) => {
    for (const { process: reader } of readersOf(world, request)) {
      process.receivers.write(reader.epoch, { type: "STALE_EPOCH", se: newEpoch(), re: reader.epoch });
    }
  },
};

const readersOf = (world: World, request: string | null): Pull[] =>
  world.transfers.pulls.filter(({ transfer }) => transfer.request === request);

const atOnce: ReadonlySet<FaultKind> = new Set([
  "mute",
  "duplicate",
  "stall dial",
  "hang read",
  "fail read",
  "slow read",
  "slow digest",
  "flip byte",
  ...rareFaults,
]);

export function strike(
  world: World,
  fault: FaultDecision,
  request: string | null,
  place: (where: Place) => SimProcess | undefined,
): void {
  const { time, limits } = world;
  const lasting = (leases: number): number => Math.min(time.now + leases * limits.leaseMs, world.calmAt);
  for (const { what, where, size } of fault.strikes) {
    const run = (): void => {
      const process = place(where);
      if (world.isCalm || process === undefined) return;
      world.trace(() => `fault: ${what} at ${process.name}`);
      strikes[what]({ world, process, request, size: size / 1000, lasting });
    };
    if (atOnce.has(what)) run();
    else time.after((fault.after / 1000) * limits.leaseMs, run);
  }
}
