import type { KvError } from "../../src/errors.ts";
import { type RequestId, requestId } from "../../src/ids.ts";
import type { BlockHold } from "../../src/kv/pool.ts";
import type { TransferReport } from "../../src/transceiver/api.ts";
import type { SessionObserver } from "../../src/transceiver/observer.ts";
import type { Offer } from "../../src/transceiver/offer.ts";
import type { ReceiverSession } from "../../src/transceiver/receiver_session.ts";
import { verifyModes } from "../../src/transceiver/verification.ts";
import { type Coverage, rowName } from "./coverage.ts";
import { type Limits, layout, SimProcess } from "./process.ts";
import { Random } from "./random.ts";
import { VirtualTime } from "./virtual_time.ts";

/** Typical times in ms; a twentieth of all waits is up to 20 times longer. */
export interface Delays {
  readonly network: number;
  readonly command: number;
  readonly completion: number;
  readonly copy: number;
  readonly timer: number;
}

export interface FaultRates {
  readonly hangingRead: number;
  readonly failingRead: number;
  readonly slowRead: number;
  /** Leases start, and reads are posted, long after the frames that speak of them. */
  readonly starvedOwner: number;
  readonly refusedDial: number;
  /** A read ends well and has left a wrong token. */
  readonly flippedByte: number;
}

/** What a broken invariant looks like: the run's seed replays it. */
export class Broken extends Error {
  override readonly name = "Broken";
}

interface Transfer {
  readonly request: RequestId;
  readonly number: number;
  readonly tokens: number;
  readonly sender: SimProcess;
  readonly receiver: SimProcess;
  offer: Offer | null;
  readonly pulls: Pull[];
  senderOutcome: "ok" | KvError | null;
}

interface Pull {
  readonly receiver: SimProcess;
  readonly session: ReceiverSession;
  outcome: "ok" | KvError | null;
}

/** One run: processes, their transfers, faults, and the invariants of design.md section 3 that are checked as it goes. */
export class World {
  readonly time = new VirtualTime();
  readonly random: Random;
  readonly delays: Delays;
  readonly clockError: number;
  readonly limits: Limits;
  readonly transfers: Transfer[] = [];
  readonly faults: { chance(kind: keyof FaultRates): boolean };
  readonly #byName = new Map<string, SimProcess>();
  readonly #byAddress = new Map<string, SimProcess>();
  readonly #trace: string[] = [];
  #starts = 0;
  #calm = false;
  #strikes: number;
  #strike: (() => void) | null = null;
  readonly coverage: Coverage = new Map();
  failure: Broken | null = null;

  constructor(seed: number, options: { readonly clockError: number; readonly strict: boolean }) {
    this.random = new Random(seed);
    const { random } = this;
    this.clockError = options.clockError;
    const slow = random.chance(0.3) ? 20 : 1;
    this.delays = {
      network: random.between(0.1, 5) * slow,
      command: random.between(0.01, 0.5) * slow,
      completion: random.between(0.01, 2) * slow,
      copy: random.between(0.05, 5) * slow,
      timer: random.between(0, 1),
    };
    const leaseMs = random.pick([200, 1000]);
    this.limits = {
      leaseMs,
      transferMs: random.chance(0.3) ? null : random.between(leaseMs, leaseMs * 6),
      queueMs: random.between(leaseMs * 2, leaseMs * 8),
      stallMs: 2 * leaseMs,
      strict: options.strict,
      verify: random.pick(verifyModes),
    };
    const rates: FaultRates = {
      hangingRead: random.chance(0.2) ? 0.05 : 0,
      failingRead: random.chance(0.2) ? 0.05 : 0,
      slowRead: random.chance(0.5) ? 0.3 : 0,
      starvedOwner: random.chance(0.3) ? 0.1 : 0,
      refusedDial: random.chance(0.3) ? 0.2 : 0,
      // What only a full comparison must see.
      flippedByte: this.limits.verify === "full" && random.chance(0.5) ? 0.05 : 0,
    };
    this.#strikes = random.int(0, 8);
    this.faults = { chance: (kind) => !this.#calm && random.chance(rates[kind]) };
  }

  trace(line: string): void {
    this.#trace.push(`${this.time.now.toFixed(3).padStart(12)}  ${line}`);
  }

  get story(): string {
    return this.#trace.slice(-200).join("\n");
  }

  /** Faults come where something happens: a fair part of all transitions is followed by one. */
  onTransition(strike: () => void): void {
    this.#strike = strike;
  }

  transition(process: string, step: Parameters<SessionObserver>[0]): void {
    const { role, requestId: request, from, event, to } = step;
    const row = rowName(role, from, event);
    this.coverage.set(row, (this.coverage.get(row) ?? 0) + 1);
    this.trace(`${process} ${role} ${request.slice(-4)}: ${from} --${event}--> ${to}`);
    if (this.#calm || this.#strikes === 0 || this.#strike === null || !this.random.chance(0.15)) return;
    this.#strikes--;
    const strike = this.#strike;
    this.time.after(this.random.delay(this.delays.network * 2), () => {
      if (!this.#calm) strike();
    });
  }

  /** The first one counts: what follows may be its consequence. */
  broken(what: string): void {
    this.failure ??= new Broken(`at ${this.time.now.toFixed(3)} ms: ${what}`);
  }

  start(address: string): SimProcess {
    const process = new SimProcess(this, `${address}#${++this.#starts}`, address, this.limits);
    this.#byName.set(process.name, process);
    this.#byAddress.set(address, process);
    return process;
  }

  /** The newest process at each address. */
  get current(): SimProcess[] {
    return [...this.#byAddress.values()];
  }

  processOf(name: string): SimProcess | null {
    return this.#byName.get(name) ?? null;
  }

  processAt(address: string): SimProcess | null {
    return this.#byAddress.get(address) ?? null;
  }

  /** No new faults from here on: what is open must end by itself. */
  calm(): void {
    this.#calm = true;
    for (const process of this.#byName.values()) if (process.stopped && !process.dead) process.resume();
  }

  // --- transfers --------------------------------------------------------------------------------------------------------

  static value(number: number, token: number): number {
    return number * 10_000 + token + 1;
  }

  /** A context process prefills, in steps, and a generation process fetches what is offered. */
  transfer(sender: SimProcess, receiver: SimProcess, tokens: number): void {
    const number = this.transfers.length + 1;
    const transfer: Transfer = {
      request: requestId(number),
      number,
      tokens,
      sender,
      receiver,
      offer: null,
      pulls: [],
      senderOutcome: null,
    };
    this.transfers.push(transfer);
    if (this.random.chance(0.3)) this.#generationFirst(transfer);
    else sender.soon(() => this.#offer(transfer, false));
  }

  /** The receiver asks for what the sender will offer before, while or after that computes it, or never. */
  #generationFirst(transfer: Transfer): void {
    const { sender, receiver, request } = transfer;
    const { random, delays } = this;
    const apart = (): number => random.delay(random.chance(0.2) ? this.limits.leaseMs : delays.network);
    receiver.later(apart(), () => this.#fetch(transfer, receiver, null));
    sender.later(apart(), () => {
      if (random.chance(0.1)) {
        sender.offers.waiting.refuse(request);
        return;
      }
      if (random.chance(0.3)) {
        this.#offer(transfer, true);
        return;
      }
      sender.offers.waiting.arrival(request, undefined).then(
        () => sender.later(apart(), () => this.#offer(transfer, true)),
        () => sender.offers.waiting.refuse(request),
      );
    });
  }

  #offer(transfer: Transfer, finishes: boolean): void {
    const { sender, receiver, tokens, request, number } = transfer;
    const count = Math.ceil(tokens / layout.tokensPerBlock);
    if (sender.pool.free < count) return;
    const blocks = sender.pool.allocate(count);
    const { random } = this;
    const streaming = random.chance(0.5);
    let ready = streaming ? random.int(0, tokens - 1) : tokens;
    for (let token = 0; token < ready; token++) sender.memory.write(blocks.ids, token, World.value(number, token));
    const offer = sender.offers.add({ requestId: request, tokens, blocks, ready });
    transfer.offer = offer;
    const first = { firstTokens: [number] };
    if (finishes && ready === tokens) offer.finish(first);
    const compute = (): void => {
      // The engine holds the blocks while it writes them; it learns of a failed transfer and stops.
      if (!offer.isOpen || ready >= tokens) {
        blocks.release();
        return;
      }
      const next = random.int(ready + 1, tokens);
      for (let token = ready; token < next; token++) sender.memory.write(blocks.ids, token, World.value(number, token));
      ready = next;
      if (finishes && ready === tokens) offer.finish(first);
      else offer.ready(ready);
      sender.later(random.delay(this.limits.leaseMs / 4), compute);
    };
    sender.later(random.delay(this.limits.leaseMs / 10), compute);
    if (finishes) return;
    // The router's way: the state travels by HTTP, now and then late.
    const wait = random.chance(0.1)
      ? random.between(0, this.limits.queueMs * 1.2)
      : random.delay(this.delays.network * 3);
    this.time.after(wait, () => receiver.soon(() => this.#fetch(transfer, receiver, offer.token)));
    // A router that tried twice: another generation worker asks for the same offer.
    if (!random.chance(0.15)) return;
    const other = random.pick(this.current);
    if (other === receiver || other === sender) return;
    this.time.after(random.delay(this.delays.network * 6), () =>
      other.soon(() => this.#fetch(transfer, other, offer.token)),
    );
  }

  #fetch(transfer: Transfer, receiver: SimProcess, token: Offer["token"] | null): void {
    const { sender, tokens, request, number } = transfer;
    const count = Math.ceil(tokens / layout.tokensPerBlock);
    if (receiver.pool.free < count) return;
    const blocks = receiver.pool.allocate(count);
    const skipTokens = this.random.chance(0.2) ? this.random.int(0, tokens) : 0;
    const session = receiver.pulls.start(
      { requestId: request, token, peer: sender.name, tokens, skipTokens, blocks },
      { name: sender.name, epoch: sender.epoch, tcp: sender.address, unix: null },
      undefined,
    );
    const pull: Pull = { receiver, session, outcome: null };
    transfer.pulls.push(pull);
    session.done.then(
      ({ first }) => {
        if (token === null && first?.firstTokens[0] !== number)
          this.broken(`transfer ${number} came without its token`);
        for (let at = skipTokens; at < tokens; at++) {
          const got = receiver.memory.read(blocks.ids, at);
          if (got === World.value(number, at)) continue;
          this.broken(`I2: transfer ${number} is complete but token ${at} is ${got}, not ${World.value(number, at)}`);
          break;
        }
        this.#receiverEnded(number, pull, "ok", blocks);
      },
      (error: KvError) => this.#receiverEnded(number, pull, error, blocks),
    );
  }

  #receiverEnded(number: number, pull: Pull, outcome: "ok" | KvError, blocks: BlockHold): void {
    this.trace(`transfer ${number} received at ${pull.receiver.name}: ${outcome === "ok" ? "ok" : outcome.code}`);
    if (pull.outcome !== null) this.broken(`I5: transfer ${number} ended twice at ${pull.receiver.name}`);
    pull.outcome = outcome;
    // The scheduler takes its request off; the session keeps what a read may still touch.
    blocks.release();
  }

  sendEnded(request: RequestId, report: TransferReport | null, error: KvError | null): void {
    const transfer = this.transfers.find((one) => one.request === request);
    if (transfer === undefined) return;
    this.trace(`transfer ${transfer.number} sent: ${error?.code ?? "ok"}`);
    if (transfer.senderOutcome !== null) this.broken(`I5: transfer ${transfer.number} ended twice at its sender`);
    transfer.senderOutcome = error ?? "ok";
    if (report === null) return;
    // Its promise settles in a microtask; the session's own outcome is there already.
    const completed = transfer.pulls.some(({ session }) => session.outcome === "ok");
    if (!completed) this.broken(`I5: transfer ${transfer.number} is complete at its sender, not at its receiver`);
  }

  /** After calm and enough time: nothing is open, nothing is lost. */
  checkEnd(): void {
    for (const process of this.#byName.values()) {
      if (process.dead) continue;
      const { name, offers, pulls, pool, plane } = process;
      if (offers.waiting.open > 0) this.broken(`I4: ${name} still has ${offers.waiting.open} pulls that wait`);
      if (offers.open > 0) this.broken(`I4: ${name} still has ${offers.open} offers open`);
      if (plane.leasesHeld > 0) this.broken(`I2: ${name} still has ${plane.leasesHeld} leases`);
      // One that hangs, or is so slow that this run ends before it.
      const unquiet = plane.unquietReads;
      if (pulls.open > unquiet)
        this.broken(`I4: ${name} still has ${pulls.open} pulls open, ${unquiet} reads still run`);
      if (unquiet === 0 && pool.free !== pool.total)
        this.broken(`I5: ${name} has ${pool.total - pool.free} blocks too few`);
      if (unquiet === 0 && plane.holds !== 0)
        this.broken(`I4: ${name} keeps Node alive for ${plane.holds} ended transfers`);
    }
    for (const { number, offer, sender, pulls, senderOutcome } of this.transfers) {
      for (const { receiver, outcome } of pulls) {
        if (!receiver.dead && outcome === null)
          this.broken(`I4: transfer ${number} has no outcome at ${receiver.name}`);
      }
      if (offer !== null && !sender.dead && senderOutcome === null)
        this.broken(`I4: transfer ${number} has no outcome at its sender`);
    }
  }
}
