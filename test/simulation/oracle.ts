import type { KvError } from "../../src/errors.ts";
import type { TransferReport } from "../../src/transceiver/api.ts";
import type { ReceiverState } from "../../src/transceiver/receiver_table.ts";
import type { SenderSession } from "../../src/transceiver/sender_session.ts";
import type { SimPlane } from "./plane.ts";
import { BLOCKS, type SimProcess } from "./process.ts";
import { contentOf, type Fetch, type Outcome, type Pull, type Sending, type Transfer } from "./transfers.ts";
import { Waits } from "./waits.ts";
import type { World } from "./world.ts";

type PostedRead = SimPlane["running"] extends ReadonlySet<infer Read> ? Read : never;

/** Reads may move bytes into these for a session whose outcome is not told yet. */
const readingStates: ReadonlySet<ReceiverState> = new Set<ReceiverState>(["READ", "FINISH", "ORPHAN", "VERIFY"]);

/**
 * The invariants I1 to I8 of design.md section 3, checked by name after every step, and what must be true of outcomes. I9 has its own test
 * on the real addon.
 */
export class Oracle {
  readonly waits: Waits;
  readonly #world: World;
  #checkedVersion = -1;

  constructor(world: World) {
    this.#world = world;
    this.waits = new Waits(world);
  }

  #broken(what: string): void {
    this.#world.broken(what);
  }

  /** After every step. */
  check(): void {
    const { transfers } = this.#world;
    let version = 0;
    for (const process of this.#world.processes) version += process.memory.version;
    const memoryChanged = version !== this.#checkedVersion;
    this.#checkedVersion = version;
    for (const transfer of transfers.all) {
      for (const sending of transfer.sendings) if (!sending.process.dead) this.#checkSending(sending, memoryChanged);
      for (const { pulls } of transfer.fetches) {
        for (const pull of pulls) if (!pull.process.dead) this.#checkPull(pull);
      }
    }
    for (const process of this.#world.processes) {
      if (process.dead) continue;
      this.#checkProcess(process);
      if (!process.touched) continue;
      process.touched = false;
      process.senderDuties.check(process.offers.waiting.open);
      process.receiverDuties.check();
    }
  }

  #checkSending(sending: Sending, memoryChanged: boolean): void {
    const { offer, process, rank, blocks, transfer } = sending;
    let pinned = false;
    for (const session of offer.sessions) {
      this.waits.sender(session, sending);
      this.#checkSession(session, sending);
      if (!session.blocks.released) pinned = true;
    }
    if (!pinned || !memoryChanged) return;
    for (let token = 0; token < sending.written; token++) {
      if (process.memory.read(blocks, token) === contentOf(transfer.number, rank, token)) continue;
      this.#broken(
        `I1: somebody wrote into token ${token} of transfer ${transfer.number} while ${process.name} offers it`,
      );
      return;
    }
  }

  #checkSession(session: SenderSession, { process, transfer, blocks }: Sending): void {
    const name = (): string => `transfer ${transfer.number} at ${process.name}`;
    if (session.state === "END") {
      if (!session.blocks.released) this.#broken(`I5: ${name()} is over and keeps its blocks`);
      return;
    }
    if (session.blocks.released) this.#broken(`I5: ${name()} gave its blocks back in ${session.state}`);
    else if (process.pool.references(blocks[0] as Parameters<typeof process.pool.references>[0]) === 0) {
      this.#broken(`I2: the blocks of ${name()} are free in ${session.state}`);
    }
  }

  #checkPull(pull: Pull): void {
    this.waits.receiver(pull);
    const { session, process, transfer } = pull;
    if (pull.outcome !== null && (pull.outcome === "ok") !== (session.outcome === "ok")) {
      this.#broken(`I5: transfer ${transfer.number} at ${process.name} has two outcomes`);
    }
    if (session.state === "END") return;
    const first = pull.blocks[0] as Parameters<typeof process.pool.references>[0];
    if (process.pool.references(first) === 0) {
      this.#broken(`I3: transfer ${transfer.number} at ${process.name} lost its blocks in ${session.state}`);
    }
    if (session.outcome === null && session.state === "DRAIN") {
      this.#broken(`I5: transfer ${transfer.number} at ${process.name} drains without an outcome`);
    }
  }

  #checkProcess(process: SimProcess): void {
    const { plane, pulls, offers, pool, name } = process;
    for (const { target } of plane.running) {
      for (const id of target) {
        if (pool.references(id as Parameters<typeof pool.references>[0]) > 0) continue;
        this.#broken(`I3: block ${id} of ${name} is free while a read may write it`);
        return;
      }
    }
    if (plane.holds < 0) this.#broken(`I5: ${name} has let go more often than held`);
    if (pulls.open > 4 * BLOCKS || offers.open > 1024 || offers.waiting.open > 1024) {
      this.#broken(`I8: ${name} has ${pulls.open} pulls, ${offers.open} offers, ${offers.waiting.open} waiting pulls`);
    }
  }

  /** A session posts a read, with a turn. */
  readPosted(process: SimProcess, read: PostedRead): void {
    for (const old of process.plane.running) {
      if (old.fromToken >= read.toToken || read.fromToken >= old.toToken || old.target[0] !== read.target[0]) continue;
      // Of one chunk, layer after layer.
      if (old.layers !== null && read.layers !== null && old.layers.to <= read.layers.from) continue;
      this.#broken(
        `I3: ${process.name} reads tokens ${read.fromToken} to ${read.toToken} while an old read may write them`,
      );
    }
    const reading = new Set<number>([read.target[0] ?? 0]);
    for (const { pulls } of this.#world.transfers.all.flatMap(({ fetches }) => fetches)) {
      for (const pull of pulls) {
        if (pull.process !== process || !readingStates.has(pull.session.state)) continue;
        for (const { target, told } of process.plane.running) {
          if (!told && target[0] === pull.blocks[0]) reading.add(target[0] ?? 0);
        }
      }
    }
    if (reading.size > this.#world.plan.turns) {
      this.#broken(`I8: ${process.name} runs ${reading.size} pulls, ${this.#world.plan.turns} may`);
    }
  }

  /** The poll sees that a read is complete; next the clock is read. */
  readSeen(process: SimProcess, { target, toToken, layers }: PostedRead, source: SimProcess): void {
    const pull = this.#world.transfers.pulls.find(
      (one) => one.process === process && one.blocks[0] === target[0] && one.session.outcome === null,
    );
    const sending = pull?.transfer.sendings.find((one) => one.process === source);
    if (pull === undefined || sending === undefined) return;
    // Dead with the lease held, it has changed nothing any more.
    const session = sending.offer.sessions.find(({ transferId }) => transferId === pull.session.renewing);
    const name = `${toToken} ${layers?.to ?? "all"}`;
    if (session?.blocks.released === true && !source.dead) pull.unpinned.set(name, toToken);
    else if (layers !== null) pull.unpinned.delete(name);
    else for (const [other, to] of pull.unpinned) if (to === toToken) pull.unpinned.delete(other);
  }

  /** The caller of a pull hears that tokens [0, n) have arrived. */
  told(pull: Pull, tokens: number): void {
    if (!pull.flipped) this.#checkTokens(pull, tokens);
    for (const to of pull.unpinned.values()) {
      if (to > tokens) continue;
      const name = `transfer ${pull.transfer.number} at ${pull.process.name}`;
      this.#broken(`I2: ${name} counts a read up to token ${to} that it saw complete after the lease`);
    }
  }

  /** What ends a granted session. */
  senderStep(process: SimProcess, request: string, from: string, event: string, to: string): void {
    if ((from !== "GRANT" && from !== "ENDING") || (to !== "END" && to !== "OFFER")) return;
    if (event === "leaseOver") return;
    const transfer = this.#world.transfers.all.find((one) => one.request === request);
    const sending = transfer?.sendings.find((one) => one.process === process);
    // Its lease is dropped by the effects that follow.
    const ended = sending?.offer.sessions.filter((session) => session.state === to && session.lease !== null) ?? [];
    for (const { session, process: reader } of this.#world.transfers.pulls) {
      if (reader.dead || session.renewing === null || !ended.some((one) => one.transferId === session.renewing))
        continue;
      this.#broken(`I2: ${process.name} ended a session by ${event} in ${from} that ${reader.name} still reads`);
    }
  }

  #checkTokens({ from, transfer, source, process, blocks }: Pull, to: number): void {
    for (let token = from; token < to; token++) {
      const got = process.memory.read(blocks, token);
      const wanted = contentOf(transfer.number, source, token);
      if (got === wanted) continue;
      this.#broken(`I2: transfer ${transfer.number} at ${process.name} got ${got} for token ${token}, not ${wanted}`);
      return;
    }
  }

  pullEnded(pull: Pull, outcome: Outcome): void {
    const { transfer, process } = pull;
    const told = outcome === "ok" ? "ok" : outcome.code;
    this.#world.trace(() => `transfer ${transfer.number} received at ${process.name}: ${told}`);
    if (pull.outcome !== null) this.#broken(`I5: transfer ${transfer.number} ended twice at ${process.name}`);
    if (outcome !== "ok") return;
    if (pull.flipped && this.#world.plan.verify !== "full") return;
    this.#checkTokens(pull, pull.to);
    const asked = transfer.senders[pull.source];
    const offered = transfer.sendings.find(({ rank }) => rank === pull.source)?.process;
    if (asked !== offered) {
      this.#broken(`I6: transfer ${transfer.number} is complete, of ${offered?.name}, though ${asked?.name} was asked`);
    }
    const { mistake } = transfer.plan;
    if (mistake !== null && mistake !== "notFetched") {
      this.#broken(`I7: transfer ${transfer.number} is complete at ${process.name} in spite of ${mistake}`);
    }
  }

  fetchEnded(transfer: Transfer, fetch: Fetch, outcome: Outcome): void {
    if (fetch.outcome !== null) this.#broken(`I5: transfer ${transfer.number} ended twice at ${fetch.process.name}`);
    fetch.outcome = outcome;
  }

  sendEnded(sending: Sending, report: TransferReport | null, error: KvError | null): void {
    const { transfer, process, rank } = sending;
    this.#world.trace(() => `transfer ${transfer.number} sent by ${process.name}: ${error?.code ?? "ok"}`);
    if (sending.outcome !== null) this.#broken(`I5: transfer ${transfer.number} ended twice at ${process.name}`);
    if (report === null) return;
    // A promise settles in a microtask; the session's own outcome is there already.
    const groups = new Map<object, boolean>();
    for (const { group, pulls } of transfer.fetches) {
      const got = pulls.some(({ source, session }) => source === rank && session.outcome === "ok");
      groups.set(group, (groups.get(group) ?? true) && got);
    }
    if (![...groups.values()].includes(true)) {
      this.#broken(`I5: transfer ${transfer.number} is complete at ${process.name}, at no receiver`);
    }
  }

  /** After calm and enough time: nothing is open, nothing is lost. */
  checkEnd(): void {
    for (const process of this.#world.processes) {
      if (process.dead) continue;
      const { name, offers, pulls, pool, plane } = process;
      if (offers.waiting.open > 0) this.#broken(`I4: ${name} still has ${offers.waiting.open} pulls that wait`);
      if (offers.open > 0) this.#broken(`I4: ${name} still has ${offers.open} offers open`);
      if (plane.leasesHeld > 0) this.#broken(`I2: ${name} still has ${plane.leasesHeld} leases`);
      // One that hangs, or is so slow that this run ends before it.
      const unquiet = plane.running.size;
      if (pulls.open > unquiet)
        this.#broken(`I4: ${name} still has ${pulls.open} pulls open, ${unquiet} reads still run`);
      if (unquiet > 0) continue;
      if (pool.free !== pool.total) this.#broken(`I5: ${name} has ${pool.total - pool.free} blocks too few`);
      if (plane.holds !== 0) this.#broken(`I4: ${name} keeps Node alive for ${plane.holds} ended transfers`);
      if (plane.timers !== 0) this.#broken(`I8: ${name} has ${plane.timers} timers left over`);
    }
    for (const { number, sendings, fetches } of this.#world.transfers.all) {
      for (const { process, pulls, outcome } of fetches) {
        if (process.dead) continue;
        const open = outcome === null || pulls.some((pull) => pull.outcome === null);
        if (open) this.#broken(`I4: transfer ${number} has no outcome at ${process.name}`);
      }
      for (const { process, outcome } of sendings) {
        if (!process.dead && outcome === null) this.#broken(`I4: transfer ${number} has no outcome at its sender`);
      }
    }
  }
}
