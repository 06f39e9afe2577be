import { KvError } from "../errors.ts";
import type { BlockId, Epoch, RequestId } from "../ids.ts";
import type { Layout } from "../kv/layout.ts";
import type { BlockPool } from "../kv/pool.ts";
import { type ParallelSizes, placeOf, ranksOf } from "../kv/ranks.ts";
import type { PageKind } from "../native/plane_binding.ts";
import type {
  CancelOutcome,
  EndedSend,
  NixlAgentStats,
  OpenOptions,
  ReceiveOptions,
  ReceiveTransfer,
  SendOptions,
  SendTransfer,
  Transceiver,
  TransceiverHealth,
  TransceiverStats,
} from "./api.ts";
import { EndedSends } from "./ended_sends.ts";
import { joinHealth } from "./joined_health.ts";
import { beginAll, joinOutcomes, joinReceives, joinSends } from "./joined_transfers.ts";
import { DEFAULT_SENDER_FUTURE_MS } from "./open_options.ts";
import { KvTransceiver } from "./transceiver.ts";
import type { TransceiverHooks } from "./transceiver_parts.ts";

export interface InstanceOptions extends Omit<OpenOptions, "parallel" | "pool">, ParallelSizes {
  /** Blocks of each rank's pool: a block id names a block in every one of them. */
  readonly pool: Extract<OpenOptions["pool"], { readonly memory: "host" }>;
}

/**
 * All ranks of one instance in one process: a transceiver and a pool each, block ids in common. A transfer of the instance is one of every
 * rank; it is complete when all are, and one that fails ends the others.
 */
export class KvInstance implements Transceiver {
  /** In rank order. */
  readonly ranks: readonly [KvTransceiver, ...KvTransceiver[]];
  readonly sizes: ParallelSizes;
  readonly #ended: EndedSends;
  #openSends = 0;

  private constructor(
    ranks: readonly [KvTransceiver, ...KvTransceiver[]],
    sizes: ParallelSizes,
    senderFutureMs: number,
  ) {
    this.ranks = ranks;
    this.sizes = sizes;
    this.#ended = new EndedSends(ranks[0].plane, senderFutureMs);
  }

  /**
   * Opens one transceiver a rank. With `listen.port` rank r listens at port + r.
   * @throws KvError as KvTransceiver.open; INVALID_ARGUMENT when the model can't be spread over so many ranks
   */
  static async open(options: InstanceOptions, hooks: TransceiverHooks = {}): Promise<KvInstance> {
    const { tpSize, ppSize, pipeline, dpRank, listen, ...common } = options;
    const sizes = { tpSize, ppSize, pipeline, dpRank };
    const opened: KvTransceiver[] = [];
    try {
      for (const rank of ranksOf({ tpSize, ppSize })) {
        const port = listen === undefined || listen.port === 0 ? 0 : listen.port + rank;
        opened.push(
          await KvTransceiver.open(
            {
              ...common,
              parallel: placeOf(rank, sizes),
              ...(listen === undefined ? {} : { listen: { ...listen, port } }),
            },
            opened[0] === undefined ? hooks : { ...hooks, pool: opened[0].pool },
          ),
        );
      }
      const [first, ...rest] = opened;
      if (first === undefined) throw new KvError("INVALID_ARGUMENT", { what: "tpSize * ppSize", why: "it is below 1" });
      const futureMs = common.config?.kv_transfer_sender_future_timeout_ms ?? DEFAULT_SENDER_FUTURE_MS;
      return new KvInstance([first, ...rest], sizes, futureMs);
    } catch (error) {
      await Promise.all(opened.map((transceiver) => transceiver.close()));
      throw error;
    }
  }

  /** Of each rank: all have the same. */
  get paths(): KvTransceiver["paths"] {
    return this.ranks[0].paths;
  }

  /** Of rank 0, which stands for the start of this instance. */
  get epoch(): Epoch {
    return this.ranks[0].epoch;
  }

  get instance(): string {
    return this.ranks[0].instance;
  }

  get pool(): BlockPool {
    return this.ranks[0].pool;
  }

  get layout(): Layout {
    return this.ranks[0].layout;
  }

  get endpoints(): Transceiver["endpoints"] {
    return this.ranks[0].endpoints;
  }

  send(options: SendOptions): SendTransfer {
    const sending = joinSends(beginAll(this.ranks.map((rank) => () => rank.send(options))));
    this.#openSends++;
    const ended = (outcome: Partial<EndedSend>): void => {
      this.#openSends--;
      this.#ended.add({ requestId: options.requestId, ...outcome });
    };
    sending.done.then(
      (report) => ended({ report }),
      (error: Error) => ended({ error }),
    );
    return sending;
  }

  receive(options: ReceiveOptions): ReceiveTransfer {
    return joinReceives(beginAll(this.ranks.map((rank) => () => rank.receive(options))));
  }

  get infoEndpoints(): readonly string[] {
    return this.ranks.flatMap(({ infoEndpoints }) => infoEndpoints);
  }

  /** Every rank is asked, as every rank holds a part. */
  async awaitPull(requestId: RequestId, signal?: AbortSignal): Promise<void> {
    await Promise.all(this.ranks.map((rank) => rank.awaitPull(requestId, signal)));
  }

  refuse(requestId: RequestId): void {
    for (const rank of this.ranks) rank.refuse(requestId);
  }

  release(state: string): CancelOutcome {
    return joinOutcomes(this.ranks.map((rank) => rank.release(state)));
  }

  decline(state: string): void {
    for (const rank of this.ranks) rank.decline(state);
  }

  waitForSenders(options: { readonly atLeast: number }): Promise<readonly EndedSend[]> {
    return this.#ended.wait(options.atLeast, () => this.#openSends);
  }

  /** Blocks are counted once, transfers once for each pair of ranks. */
  stats(): TransceiverStats {
    const all = this.ranks.map((rank) => rank.stats());
    const sum = (of: (stats: TransceiverStats) => number): number => all.reduce((total, one) => total + of(one), 0);
    const union = (of: (rank: KvTransceiver) => Iterable<BlockId>): number =>
      new Set(this.ranks.flatMap((rank) => [...of(rank)])).size;
    const dropped: Record<string, number> = {};
    for (const one of all) {
      for (const [what, count] of Object.entries(one.dropped)) dropped[what] = (dropped[what] ?? 0) + count;
    }
    const { total, free } = this.pool;
    return {
      blocks: {
        total,
        free,
        held: total - free,
        pinned: union((rank) => rank.blocksInUse.pinned),
        leased: union((rank) => rank.blocksInUse.leased),
        quarantined: union((rank) => rank.blocksInUse.quarantined),
      },
      sends: {
        waiting: sum(({ sends }) => sends.waiting),
        open: sum(({ sends }) => sends.open),
        leased: sum(({ sends }) => sends.leased),
        completed: sum(({ sends }) => sends.completed),
        failed: sum(({ sends }) => sends.failed),
        cancelled: sum(({ sends }) => sends.cancelled),
      },
      receives: {
        open: sum(({ receives }) => receives.open),
        waiting: sum(({ receives }) => receives.waiting),
        completed: sum(({ receives }) => receives.completed),
        failed: sum(({ receives }) => receives.failed),
        cancelled: sum(({ receives }) => receives.cancelled),
      },
      bytesReceived: sum(({ bytesReceived }) => bytesReceived),
      memory: joinMemory(all.map(({ memory }) => memory)),
      mismatches: sum(({ mismatches }) => mismatches),
      peers: all.flatMap(({ peers }) => peers),
      dropped,
      nixl: joinNixl(all.flatMap(({ nixl }) => nixl ?? [])),
    };
  }

  get unusable(): Promise<string> {
    return Promise.race(this.ranks.map((rank) => rank.unusable));
  }

  /** As its worst rank. */
  health(): TransceiverHealth {
    return joinHealth(this.ranks.map((rank, number) => [`rank ${number}`, rank.health()]));
  }

  async drain(): Promise<void> {
    await Promise.all(this.ranks.map((rank) => rank.drain()));
  }

  async close(): Promise<void> {
    await Promise.all(this.ranks.map((rank) => rank.close()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function joinNixl(all: readonly NixlAgentStats[]): NixlAgentStats | null {
  if (all.length === 0) return null;
  const sum = (of: (one: NixlAgentStats) => number): number => all.reduce((total, one) => total + of(one), 0);
  return {
    wedged: all.flatMap(({ wedged }) => wedged),
    replaced: sum(({ replaced }) => replaced),
    retired: sum(({ retired }) => retired),
    exhausted: all.some(({ exhausted }) => exhausted),
    quarantinedSlotBytes: sum(({ quarantinedSlotBytes }) => quarantinedSlotBytes),
  };
}

const PAGES_ORDER: readonly PageKind[] = ["gpu", "hugetlb", "transparent", "normal"];

/** Of all ranks' pools: bytes together, pages as the worst one's, with its reason. */
function joinMemory(all: readonly TransceiverStats["memory"][]): TransceiverStats["memory"] {
  const worst = all.reduce((one, other) =>
    PAGES_ORDER.indexOf(other.pages) > PAGES_ORDER.indexOf(one.pages) ? other : one,
  );
  return { ...worst, bytes: all.reduce((total, { bytes }) => total + bytes, 0) };
}
