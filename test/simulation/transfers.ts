import type { KvError } from "../../src/errors.ts";
import { newToken, type RequestId, requestId } from "../../src/ids.ts";
import type { BlockHold } from "../../src/kv/pool.ts";
import type { ReceiveTransfer, SendTransfer, TransferReport } from "../../src/transceiver/api.ts";
import { joinReceives, joinSends } from "../../src/transceiver/joined_transfers.ts";
import type { Offer } from "../../src/transceiver/offer.ts";
import { encodeState } from "../../src/transceiver/opaque_state.ts";
import type { LayerSpan } from "../../src/transceiver/read_front.ts";
import type { ReceiverSession } from "../../src/transceiver/receiver_session.ts";
import type { PartlyReady } from "../../src/transceiver/sender_house.ts";
import { LAYERS } from "./memory.ts";
import type { TransferDecision } from "./plan.ts";
import { layout, partOf, type SimProcess } from "./process.ts";
import type { World } from "./world.ts";

export type Outcome = "ok" | KvError;

/** What one context rank offers of a request. */
export interface Sending {
  readonly transfer: Transfer;
  readonly process: SimProcess;
  readonly rank: number;
  readonly offer: Offer;
  readonly blocks: readonly number[];
  /** Tokens [0, n) are written. */
  written: number;
  /** Tokens [0, n) are announced. */
  announced: number;
  ahead: PartlyReady | null;
  /** The first tokens of the answer are told. */
  finished: boolean;
  outcome: Outcome | null;
}

/** What one generation rank pulls of one context rank. */
export interface Pull {
  readonly transfer: Transfer;
  readonly process: SimProcess;
  readonly source: number;
  readonly session: ReceiverSession;
  readonly blocks: readonly number[];
  readonly from: number;
  readonly to: number;
  /** Where the reads end that were seen complete after the sender gave its blocks back. */
  readonly unpinned: Map<string, number>;
  /** A fault has changed what was read: only a comparison of digests can see it. */
  flipped: boolean;
  outcome: Outcome | null;
}

/** All pulls of one generation rank for one request. */
export interface Fetch {
  /** Of all ranks of one instance, fetching once. */
  readonly group: object;
  readonly process: SimProcess;
  readonly pulls: readonly Pull[];
  outcome: Outcome | null;
}

export interface Transfer {
  readonly number: number;
  readonly request: RequestId;
  readonly plan: TransferDecision;
  readonly senders: readonly SimProcess[];
  readonly sendings: Sending[];
  readonly fetches: Fetch[];
}

const mistakesOf: Readonly<Record<TransferDecision["way"], readonly TransferDecision["mistake"][]>> = {
  "context first": ["wrongToken", "noOffer", "notFetched"],
  "generation first": ["wrongCount", "noOffer", "refused"],
};

/** Value of a token of a request at one context rank. */
export const contentOf = (number: number, rank: number, token: number): number =>
  number * 10_000 + rank * 1000 + token + 1;

/** Requests: context instances that prefill and offer, generation instances that fetch. */
export class Transfers {
  readonly all: Transfer[] = [];
  readonly #world: World;

  constructor(world: World) {
    this.#world = world;
  }

  get pulls(): Pull[] {
    return this.all.flatMap(({ fetches }) => fetches.flatMap(({ pulls }) => pulls));
  }

  begin(decision: TransferDecision): void {
    const world = this.#world;
    const number = this.all.length + 1;
    const senders = world.instance("context", decision.context);
    // Without a secret only the token of an offer proves a receiver, so nobody may pull without one.
    const way = world.plan.proof === "token" ? "context first" : decision.way;
    const fits = decision.mistake !== null && mistakesOf[way].includes(decision.mistake);
    const { generations } = world.plan;
    const same = decision.again !== null && decision.again % generations === decision.generation % generations;
    const plan = {
      ...decision,
      way,
      mistake: fits ? decision.mistake : null,
      again: same ? null : decision.again,
    };
    const transfer: Transfer = { number, request: requestId(number), plan, senders, sendings: [], fetches: [] };
    this.all.push(transfer);
    if (way === "generation first") this.#generationFirst(transfer);
    else if (plan.mistake === "noOffer") this.#fetchAll(transfer, plan.generation, () => newToken());
    else this.#offerAll(transfer, false);
  }

  /** The receiver asks for what the sender will offer before, while or after that computes it, or never. */
  #generationFirst(transfer: Transfer): void {
    const { plan, senders, request } = transfer;
    const { delays, limits } = this.#world;
    this.#world.time.after((plan.late / 1000) * limits.leaseMs, () =>
      this.#fetchAll(transfer, plan.generation, () => null),
    );
    const { again } = plan;
    if (again !== null) {
      this.#world.time.after((plan.late / 500) * limits.leaseMs, () => this.#fetchAll(transfer, again, () => null));
    }
    // Prefill begins at once, or some time after the receiver has asked.
    const lateMs = plan.pause < 500 ? 0 : (plan.pause / 2000) * limits.leaseMs;
    for (const [rank, sender] of senders.entries()) {
      if (plan.mistake === "noOffer") continue;
      sender.later(sender.noise.delay(delays.network), () => {
        if (plan.mistake === "refused") sender.offers.waiting.refuse(request);
        else if (plan.steps % 2 === 1) this.#offer(transfer, rank, true);
        else {
          sender.offers.waiting.arrival(request, undefined).then(
            () => sender.later(lateMs, () => this.#offer(transfer, rank, true)),
            () => sender.offers.waiting.refuse(request),
          );
        }
      });
    }
  }

  #offerAll(transfer: Transfer, finishes: boolean): void {
    const { plan, senders } = transfer;
    const { delays, limits } = this.#world;
    let left = senders.length;
    const parts: SendTransfer[] = [];
    for (const [rank, sender] of senders.entries()) {
      sender.soon(() => {
        const part = this.#offer(transfer, rank, finishes);
        if (part === null) return;
        parts.push(part);
        if (--left > 0) return;
        // The ranks of one instance stand together: one that fails cancels the others.
        const [first, ...rest] = parts;
        if (first !== undefined) joinSends([first, ...rest]).done.catch(() => {});
        if (plan.mistake === "notFetched") return;
        // The router's way: the state travels by HTTP, now and then late.
        const wait = (plan.late / 1000) * limits.queueMs + sender.noise.delay(delays.network * 3);
        const token = (source: number) =>
          plan.mistake === "wrongToken" ? newToken() : (transfer.sendings[source]?.offer.token ?? newToken());
        this.#world.time.after(wait, () => this.#fetchAll(transfer, plan.generation, token));
        const { again } = plan;
        if (again === null) return;
        this.#world.time.after(wait + sender.noise.delay(delays.network * 6), () =>
          this.#fetchAll(transfer, again, token),
        );
      });
    }
  }

  /** Prefills, in steps, and offers what is there. */
  #offer(transfer: Transfer, rank: number, finishes: boolean): SendTransfer | null {
    const { plan, number, request, senders } = transfer;
    const process = senders[rank];
    const { tokens, steps } = plan;
    const count = Math.ceil(tokens / layout.tokensPerBlock);
    if (process === undefined || process.draining || process.pool.free < count) return null;
    const hold = process.pool.allocate(count);
    const write = (from: number, to: number, layers?: LayerSpan): void => {
      for (let token = from; token < to; token++) {
        process.memory.write(hold.ids, token, contentOf(number, rank, token), layers);
      }
    };
    const ready = Math.floor(tokens / (steps + 1));
    write(0, ready);
    const offer = process.offers.add({
      requestId: request,
      tokens,
      blocks: hold,
      ready,
      layers: { from: 0, to: LAYERS },
    });
    const sending: Sending = {
      transfer,
      process,
      rank,
      offer,
      blocks: hold.ids,
      written: ready,
      announced: ready,
      ahead: null,
      finished: false,
      outcome: null,
    };
    transfer.sendings.push(sending);
    const announce = (to: number): void => {
      sending.announced = to;
      sending.ahead = null;
      if (finishes && to === tokens) {
        sending.finished = true;
        offer.finish({ firstTokens: [number] });
      } else offer.ready(to);
    };
    const several = this.#world.plan.decisions.filter((one) => one.do === "transfer").length > 1;
    const isLayerwise = this.#world.plan.layerwise === true && several && number % 2 === 1;
    let step = 0;
    const compute = (): void => {
      // The engine holds the blocks while it writes them; it learns of a failed transfer and stops.
      if (!offer.isOpen || sending.written >= tokens) {
        hold.release();
        return;
      }
      step++;
      const next = step >= steps ? tokens : Math.floor((tokens * (step + 1)) / (steps + 1));
      const { written } = sending;
      // A deliberate defect: what is announced is not there yet.
      const isLate = this.#world.defects.has("ready before the data");
      const put = (layers?: LayerSpan): void => {
        if (isLate) process.later(2 * pauseMs(), () => write(written, next, layers));
        else write(written, next, layers);
      };
      const finish = (layers?: LayerSpan): void => {
        put(layers);
        sending.written = Math.max(next, sending.written);
        announce(next);
        process.later(pauseMs(), compute);
      };
      // The engine tells of each layer while it computes the step.
      const computeLayer = (layer: number): void => {
        if (!offer.isOpen) {
          hold.release();
          return;
        }
        if (layer === LAYERS - 1) {
          finish({ from: layer, to: LAYERS });
          return;
        }
        put({ from: layer, to: layer + 1 });
        if (next > sending.announced) sending.ahead = { tokens: next, layers: layer + 1 };
        offer.ready(next, layer + 1);
        process.later(pauseMs() / LAYERS, () => computeLayer(layer + 1));
      };
      if (isLayerwise) computeLayer(0);
      else finish();
    };
    const pauseMs = (): number => 0.5 * this.#world.limits.leaseMs * (plan.pause / 1000) * (0.5 + process.noise.unit());
    if (ready === tokens) announce(ready);
    process.later(pauseMs(), compute);
    const { address } = process.seat;
    const at = { rank, epoch: process.epoch, tcp: address, unix: null, token: offer.token };
    const sizes = { tpSize: senders.length, ppSize: 1 };
    // Only states of several ranks are joined.
    const state =
      senders.length === 1
        ? ""
        : encodeState({ instance: "context", layout, ...sizes, requestId: request, tokens, ranks: [at] });
    return {
      requestId: request,
      state,
      done: offer.done,
      ready: (now, layerwise) => offer.ready(now, layerwise?.layers),
      finish: (told) => offer.finish(told),
      cancel: (why = "by the simulation") => offer.cancel(why),
    };
  }

  /** All ranks of an instance, each when it gets to it. */
  #fetchAll(transfer: Transfer, generation: number, token: (source: number) => Offer["token"] | null): void {
    const group = {};
    for (const process of this.#world.instance("generation", generation)) {
      process.later(process.noise.delay(this.#world.delays.network), () =>
        this.#fetch(transfer, group, process, token),
      );
    }
  }

  #fetch(
    transfer: Transfer,
    group: object,
    process: SimProcess,
    token: (source: number) => Offer["token"] | null,
  ): void {
    const { plan, senders, number } = transfer;
    const tokens = plan.mistake === "wrongCount" ? plan.tokens + 1 : plan.tokens;
    const skip = Math.min(plan.skip, tokens);
    const count = Math.ceil(tokens / layout.tokensPerBlock);
    if (process.pool.free < count * senders.length) return;
    const holds: BlockHold[] = [];
    const parts: ReceiveTransfer[] = [];
    const pulls = senders.map((sender, source): Pull => {
      const hold = process.pool.allocate(count);
      holds.push(hold);
      const session = process.pulls.start(
        {
          requestId: transfer.request,
          token: token(source),
          peer: sender.name,
          tokens,
          skipTokens: skip,
          blocks: hold,
          part: partOf(process.seat.rank, process.seat.ranks),
        },
        { name: sender.name, epoch: sender.epoch, tcp: sender.seat.address, unix: null },
        undefined,
      );
      const pull: Pull = {
        transfer,
        process,
        source,
        session,
        blocks: hold.ids,
        from: skip,
        to: tokens,
        unpinned: new Map(),
        flipped: false,
        outcome: null,
      };
      const { progress } = session;
      const advance = progress.advance.bind(progress);
      let told = skip;
      process.receiverDuties.begin(session, sender.epoch, hold.ids[0] as number, { tokens: () => told });
      progress.advance = (now) => {
        this.#world.oracle.told(pull, now);
        told = Math.max(told, now);
        advance(now);
      };
      session.done.then(
        ({ first }) => {
          if (token(source) === null && first?.firstTokens[0] !== number)
            this.#world.broken(`I5: transfer ${number} came without its token`);
          this.#pullEnded(pull, "ok");
        },
        (error: KvError) => this.#pullEnded(pull, error),
      );
      parts.push({
        requestId: transfer.request,
        tokens,
        done: session.done,
        released: session.released,
        progress,
        cancel: (why = "by the simulation") => session.cancel(why),
      });
      return pull;
    });
    const fetch: Fetch = { group, process, pulls, outcome: null };
    transfer.fetches.push(fetch);
    const [first, ...rest] = parts;
    if (first === undefined) return;
    const ended = (outcome: Outcome): void => {
      this.#world.oracle.fetchEnded(transfer, fetch, outcome);
      // The scheduler takes its request off; the sessions keep what a read may still touch.
      for (const hold of holds) hold.release();
    };
    joinReceives([first, ...rest]).done.then(
      () => ended("ok"),
      (error: KvError) => ended(error),
    );
  }

  sendingOf(process: SimProcess, offer: Offer): Sending | undefined {
    return this.all.flatMap(({ sendings }) => sendings).find((one) => one.process === process && one.offer === offer);
  }

  #pullEnded(pull: Pull, outcome: Outcome): void {
    this.#world.oracle.pullEnded(pull, outcome);
    pull.outcome = outcome;
  }

  sendEnded(process: SimProcess, request: RequestId, report: TransferReport | null, error: KvError | null): void {
    const sending = this.all
      .find((transfer) => transfer.request === request)
      ?.sendings.find((one) => one.process === process);
    if (sending === undefined) return;
    this.#world.oracle.sendEnded(sending, report, error);
    sending.outcome = error ?? "ok";
  }
}
