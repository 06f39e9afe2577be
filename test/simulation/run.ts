import type { Coverage } from "./coverage.ts";
import type { SimProcess } from "./process.ts";
import { World } from "./world.ts";

export interface RunResult {
  readonly seed: number;
  readonly failure: Error | null;
  readonly story: string;
  readonly steps: number;
  readonly outcomes: ReadonlyMap<string, number>;
  readonly coverage: Coverage;
}

const STEPS_LIMIT = 200_000;

/** One fault, chosen and timed by the seed. */
function strike(world: World): void {
  const { random, time, limits } = world;
  const struck = random.pick(world.current);
  const kind = random.pick([
    "cut",
    "cut",
    "stall",
    "stop",
    "stop",
    "cancelSend",
    "cancelReceive",
    "drain",
    "kill",
  ] as const);
  world.trace(`fault: ${kind} at ${struck.name}`);
  switch (kind) {
    case "cut":
      for (const connection of struck.connections) if (random.chance(0.7)) connection.cut();
      break;
    case "stall": {
      for (const connection of struck.connections) {
        const side = random.chance(0.5) ? connection.left : connection.right;
        connection.stall(side, time.now + random.between(0, limits.leaseMs * 3));
      }
      break;
    }
    case "stop": {
      if (struck.dead || struck.stopped) break;
      struck.stop();
      time.after(random.between(0, limits.leaseMs * 2.5), () => struck.resume());
      break;
    }
    case "cancelSend": {
      const open = world.transfers.filter(({ sender, offer }) => sender === struck && offer !== null);
      if (open.length > 0) struck.soon(() => random.pick(open).offer?.cancel("by the simulation"));
      break;
    }
    case "cancelReceive": {
      const open = world.transfers.flatMap(({ pulls }) => pulls).filter(({ receiver }) => receiver === struck);
      if (open.length > 0) struck.soon(() => random.pick(open).session.cancel("by the simulation"));
      break;
    }
    case "drain":
      // As close() does: a transceiver that ends takes no PULL any more. A new one follows at its address.
      if (random.chance(0.5)) struck.soon(() => struck.offers.cancelAll("closing"));
      break;
    case "kill":
      if (random.chance(0.5)) killAndRestart(world, struck);
      break;
  }
}

function killAndRestart(world: World, struck: SimProcess): void {
  struck.kill();
  world.time.after(world.random.between(0, world.limits.leaseMs), () => world.start(struck.address));
}

/** Runs one seed to its end: a while with work and faults, then calm until all must have ended. */
export async function run(seed: number, options: { clockError?: number; strict?: boolean } = {}): Promise<RunResult> {
  const world = new World(seed, { clockError: options.clockError ?? 0.025, strict: options.strict ?? false });
  const { random, time, limits } = world;
  const senders = Array.from({ length: random.int(1, 2) }, (_, index) => `tcp://context-${index}:1`);
  const receivers = Array.from({ length: random.int(1, 3) }, (_, index) => `tcp://generation-${index}:1`);
  for (const address of [...senders, ...receivers]) world.start(address);

  const busyMs = limits.leaseMs * 6;
  for (let work = random.int(1, 8); work > 0; work--) {
    time.at(random.between(0, busyMs / 2), () => {
      const sender = world.processAt(random.pick(senders));
      const receiver = world.processAt(random.pick(receivers));
      if (sender !== null && receiver !== null) world.transfer(sender, receiver, random.int(1, 30));
    });
  }
  for (let faults = random.int(0, 3); faults > 0; faults--) time.at(random.between(0, busyMs), () => strike(world));
  world.onTransition(() => strike(world));
  time.at(busyMs, () => world.calm());

  // Every limit that may still run then, one after the other, with clocks a little slow.
  const settleMs =
    2 * (limits.queueMs * 4 + (limits.transferMs ?? 0) * 2 + limits.stallMs * 2 + limits.leaseMs * 4) + 60_000;
  const end = busyMs + settleMs;
  let steps = 0;
  const unhandled = (reason: unknown): void =>
    world.broken(`unhandled: ${reason instanceof Error ? reason.stack : reason}`);
  process.on("unhandledRejection", unhandled);
  try {
    while (world.failure === null && (await time.step(end))) {
      if (++steps > STEPS_LIMIT) world.broken("I8: the run does not come to rest");
    }
    if (world.failure === null) world.checkEnd();
  } catch (error) {
    world.broken(error instanceof Error ? (error.stack ?? error.message) : String(error));
  } finally {
    process.off("unhandledRejection", unhandled);
  }
  const outcomes = new Map<string, number>();
  for (const { outcome } of world.transfers.flatMap(({ pulls }) => pulls)) {
    const code = outcome === null ? "none" : outcome === "ok" ? "ok" : outcome.code;
    outcomes.set(code, (outcomes.get(code) ?? 0) + 1);
  }
  return { seed, failure: world.failure, story: world.story, steps, outcomes, coverage: world.coverage };
}
