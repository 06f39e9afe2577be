import type { SessionObserver } from "../../src/transceiver/observer.ts";
import type { Coverage } from "./coverage.ts";
import type { DefectName } from "./defects.ts";
import { strike } from "./faults.ts";
import type { Connection, SimSocket } from "./network.ts";
import { Oracle } from "./oracle.ts";
import type { Decision, Place, Plan, Trigger } from "./plan.ts";
import { foreignLayout, layout, type Seat, SimProcess } from "./process.ts";
import { rowName, stateName } from "./rows.ts";
import { intrude } from "./stranger.ts";
import { Transfers } from "./transfers.ts";
import { VirtualTime } from "./virtual_time.ts";

/** Typical times in ms; one in twenty is up to 20 times longer. */
export interface Delays {
  readonly network: number;
  /** Between JavaScript and the data plane's owner thread. */
  readonly owner: number;
  readonly copy: number;
}

export interface Limits {
  readonly leaseMs: number;
  readonly transferMs: number | null;
  readonly queueMs: number;
  readonly stallMs: number;
  readonly strict: boolean;
  readonly verify: Plan["verify"];
}

/** What a broken invariant looks like. */
export class Broken extends Error {
  override readonly name = "Broken";
}

/** Whose step it was that a decision waited for. */
interface Reached {
  readonly process: SimProcess;
  readonly role: "sender" | "receiver";
  readonly request: string;
}

/** Leases in which there is work and trouble. */
const BUSY_LEASES = 6;
/** What 0.95 allows a side, and twice that. */
const RATE_ERRORS = { good: 0.025, bad: 0.05 };

export interface WorldOptions {
  /** Keep the story: what happened, line for line. */
  readonly tracing: boolean;
  readonly defects: ReadonlySet<DefectName>;
  /** Called with the world before it begins. */
  readonly created: (world: World) => void;
  /** Also what each side owes is checked, or only the invariants. */
  readonly duties: boolean;
}

/** One run: processes, their transfers, and what the plan does to them. */
export class World {
  readonly plan: Plan;
  readonly time = new VirtualTime();
  readonly delays: Delays;
  readonly limits: Limits;
  readonly transfers: Transfers;
  readonly oracle: Oracle;
  readonly coverage: Coverage = new Map();
  readonly defects: ReadonlySet<DefectName>;
  readonly duties: boolean;
  readonly secret = "the secret of this cluster";
  readonly strangers = new Set<SimProcess>();
  readonly calmAt: number;
  failure: Broken | null = null;
  readonly #tracing: boolean;
  readonly #story: string[] = [];
  readonly #byName = new Map<string, SimProcess>();
  readonly #byAddress = new Map<string, SimProcess>();
  readonly #triggers = new Map<string, { left: number; readonly run: (at: Reached) => void }[]>();
  #starts = 0;
  #strangers = 0;
  #calm = false;
  #strangerReads = false;
  #lateReads = false;
  #otherEpochReads = false;

  constructor(plan: Plan, { tracing, defects, created, duties }: WorldOptions) {
    this.plan = plan;
    this.duties = duties;
    this.defects = defects;
    this.#tracing = tracing;
    const { leaseMs, transferLimit, queueLimit, verify, strict, clocks } = plan;
    const slow = plan.slow ? 20 : 1;
    this.delays = {
      network: (0.1 + plan.network / 200) * slow,
      owner: (0.01 + plan.owner / 2000) * slow,
      copy: (0.05 + plan.copy / 200) * slow,
    };
    this.limits = {
      leaseMs,
      transferMs: transferLimit === null ? null : (transferLimit / 10) * leaseMs,
      queueMs: (queueLimit / 10) * leaseMs,
      stallMs: 2 * leaseMs,
      strict: (strict || clocks === "bad") && !defects.has("memory of the dead is given away"),
      verify,
    };
    this.calmAt = BUSY_LEASES * leaseMs;
    this.transfers = new Transfers(this);
    this.oracle = new Oracle(this);
    this.#seats("context", plan.contexts, plan.contextRanks);
    this.#seats("generation", plan.generations, plan.generationRanks);
    for (const decision of plan.decisions) this.#schedule(decision);
    this.time.at(this.calmAt, () => this.#becomeCalm());
    created(this);
  }

  /** Where a peer's death is told, both stand on one host, and what is mapped of the dead stays as it is. */
  get deathsAreSeen(): boolean {
    return this.plan.clocks === "good";
  }

  get isCalm(): boolean {
    return this.#calm;
  }

  /** When every limit that may still run has passed, one after the other, with clocks a little slow. */
  get endMs(): number {
    const { queueMs, transferMs, stallMs, leaseMs } = this.limits;
    return this.calmAt + 2 * (queueMs * 4 + (transferMs ?? 0) * 2 + stallMs * 2 + leaseMs * 4) + 60_000;
  }

  #seats(kind: "context" | "generation", instances: number, ranks: number): void {
    const { rates, clocks, foreign } = this.plan;
    for (let instance = 0; instance < instances; instance++) {
      for (let rank = 0; rank < ranks; rank++) {
        const rateError = (RATE_ERRORS[clocks] * rates[kind === "context" ? 0 : 1]) / 1000;
        this.start({
          address: addressOf(kind, instance, rank),
          instance: `${kind}-${instance}`,
          rank,
          ranks,
          layout: kind === "generation" && foreign === instance ? foreignLayout : layout,
          rateError,
        });
      }
    }
  }

  #schedule(decision: Decision): void {
    if (decision.do === "transfer") {
      this.time.at((decision.at / 1000) * this.calmAt, () => this.transfers.begin(decision));
    } else if (decision.do === "stranger") {
      const number = ++this.#strangers;
      this.#when(decision.when, (at) => {
        const target = this.#placeOf(decision.where, at);
        if (target !== undefined) this.time.after(0, () => intrude(this, decision, target, number));
      });
    } else {
      this.#when(decision.when, (at) =>
        strike(this, decision, at?.request ?? null, (where) => this.#placeOf(where, at)),
      );
    }
  }

  #placeOf(where: Place, at: Reached | null): SimProcess | undefined {
    const { current } = this;
    if (typeof where === "number") return current[where % current.length];
    if (at === null) return current[0];
    if (where === "here") return at.process;
    const transfer = this.transfers.all.find(({ request }) => request === at.request);
    if (at.role === "receiver") return transfer?.senders[0];
    return transfer?.fetches[0]?.process ?? current.at(-1);
  }

  #when(trigger: Trigger, run: (at: Reached | null) => void): void {
    if ("at" in trigger) {
      this.time.at((trigger.at / 1000) * this.calmAt, () => run(null));
      return;
    }
    const key = "row" in trigger ? trigger.row : `> ${trigger.enters}`;
    const waiting = this.#triggers.get(key) ?? [];
    waiting.push({ left: trigger.nth, run });
    this.#triggers.set(key, waiting);
  }

  #reached(key: string, at: Reached): void {
    for (const trigger of this.#triggers.get(key) ?? []) if (--trigger.left === 0) trigger.run(at);
  }

  /** No new faults from here on: what is open must end by itself. */
  #becomeCalm(): void {
    this.#calm = true;
    for (const process of this.#byName.values()) if (process.stopped && !process.dead) process.resume();
  }

  // --- what happens ---------------------------------------------------------------------------------------------------------

  trace(line: () => string): void {
    if (this.#tracing) this.#story.push(`${this.time.now.toFixed(3).padStart(12)}  ${line()}`);
  }

  get story(): string {
    return this.#story.slice(-200).join("\n");
  }

  transition(process: SimProcess, { role, requestId, from, event, to }: Parameters<SessionObserver>[0]): void {
    const row = rowName(role, from, event);
    this.coverage.set(row, (this.coverage.get(row) ?? 0) + 1);
    this.trace(() => `${process.name} ${role} ${requestId.slice(-4)}: ${from} --${event}--> ${to}`);
    this.oracle.waits.step(process.name, role, requestId, event);
    if (this.#strangerReads && from !== to) {
      this.broken(`I7: a stranger's frame moved a session of ${process.name} by ${event} from ${from} to ${to}`);
    }
    if (this.#otherEpochReads) this.broken(`I6: a frame of another epoch is ${event} to ${process.name}`);
    if (this.#lateReads && event === "granted") {
      this.broken(`I6: ${process.name} took the GRANT of an earlier attempt`);
    }
    if (role === "sender") {
      this.oracle.senderStep(process, requestId, from, event, to);
      process.senderDuties.step(requestId, from, event, to);
    }
    if (this.#triggers.size === 0) return;
    const at: Reached = { process, role, request: requestId };
    this.#reached(row, at);
    if (from !== to) this.#reached(`> ${stateName(role, to)}`, at);
  }

  /** Around the reading of what has arrived. */
  reading(connection: Connection, at: SimSocket, read: () => void): void {
    this.#strangerReads = at === connection.right && this.strangers.has(connection.left.owner);
    read();
    this.#strangerReads = false;
  }

  /** Around the reading of a frame by a receiver. @param isOther of another epoch than the connection's */
  readingOf(isOther: boolean, read: () => void): void {
    this.#otherEpochReads = isOther;
    read();
    this.#otherEpochReads = false;
  }

  /** A frame of a connection that was cut. */
  arriveLate(at: SimSocket, bytes: Uint8Array): void {
    at.owner.soon(() => {
      if (at.destroyed) return;
      this.#lateReads = true;
      at.emit("data", bytes);
      this.#lateReads = false;
    });
  }

  /** The first one counts: what follows may be its consequence. */
  broken(what: string): void {
    if (this.failure !== null) return;
    this.failure = new Broken(`at ${this.time.now.toFixed(3)} ms: ${what}`);
    this.trace(() => `BROKEN ${what}`);
  }

  flipped(process: SimProcess, block: number, place: number): void {
    const pull = this.transfers.pulls.find(
      (one) => one.process === process && one.blocks.includes(block) && one.session.outcome === null,
    );
    if (pull === undefined) return;
    pull.flipped = true;
    process.memory.flip(block as Parameters<typeof process.memory.flip>[0], place);
    this.trace(() => `fault: a byte of block ${block} of ${process.name} is wrong`);
  }

  // --- who is there ---------------------------------------------------------------------------------------------------------

  start(seat: Seat): SimProcess {
    const process = new SimProcess(this, `${seat.address.slice(6, -2)}#${++this.#starts}`, seat);
    this.#byName.set(process.name, process);
    this.#byAddress.set(seat.address, process);
    return process;
  }

  get processes(): Iterable<SimProcess> {
    return this.#byName.values();
  }

  /** The newest process at each address. */
  get current(): readonly SimProcess[] {
    return [...this.#byAddress.values()];
  }

  /** The ranks of an instance as they are now; the plan may name more instances than there are. */
  instance(kind: "context" | "generation", index: number): readonly SimProcess[] {
    const { contexts, contextRanks, generations, generationRanks } = this.plan;
    const [instances, ranks] = kind === "context" ? [contexts, contextRanks] : [generations, generationRanks];
    return Array.from({ length: ranks }, (_, rank) =>
      this.#byAddress.get(addressOf(kind, index % instances, rank)),
    ).flatMap((process) => process ?? []);
  }

  processOf(name: string): SimProcess | null {
    return this.#byName.get(name) ?? null;
  }

  processAt(address: string): SimProcess | null {
    return this.#byAddress.get(address) ?? null;
  }
}

const addressOf = (kind: string, instance: number, rank: number): string => `tcp://${kind}-${instance}.${rank}:1`;
