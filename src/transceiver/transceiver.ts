import { KvError } from "../errors.ts";
import { type BlockId, type Epoch, newEpoch, type RequestId } from "../ids.ts";
import type { Layout } from "../kv/layout.ts";
import type { BlockPool } from "../kv/pool.ts";
import { shareOf } from "../kv/ranks.ts";
import { type InstanceLayout, instanceDifferences } from "../layout.ts";
import { loadNative } from "../native/loader.ts";
import type { NativeGpu, NativeGroup, NativePoolSpan } from "../native/plane_binding.ts";
import { createLogger } from "../observability/log.ts";
import type {
  CancelOutcome,
  EndedSend,
  NixlAgentStats,
  OpenOptions,
  ReceiveBlocks,
  ReceiveFromPeer,
  ReceiveOptions,
  ReceiveTransfer,
  SendOptions,
  SendTransfer,
  Transceiver,
  TransceiverHealth,
  TransceiverStats,
} from "./api.ts";
import type { ControlServer } from "./control_server.ts";
import type { DataPlane } from "./data_plane.ts";
import type { EndedSends } from "./ended_sends.ts";
import { infoEndpoint, parseInfoEndpoint } from "./info_endpoint.ts";
import { NativePlane } from "./native_plane.ts";
import type { Offer } from "./offer.ts";
import type { Offers } from "./offers.ts";
import { decodeState, encodeState } from "./opaque_state.ts";
import { type ResolvedOptions, resolveOptions } from "./open_options.ts";
import { type OpenedPaths, openPaths } from "./open_paths.ts";
import { RANKS_LIMIT } from "./peer_ranks.ts";
import type { Pulls } from "./pulls.ts";
import { type RankedPulls, sourcesOf } from "./ranked_pulls.ts";
import type { LayerSpan } from "./read_front.ts";
import { checkBlocks, checkedFirst, checkLayers, checkSkip } from "./request_checks.ts";
import { connectParts, type Parts, type TransceiverHooks } from "./transceiver_parts.ts";
import type { TransferCounts } from "./transfer_counts.ts";

/** Quarantined blocks above this share of the pool make the transceiver unhealthy (I3). */
const QUARANTINE_BUDGET = 0.25;

type Phase = "open" | "draining" | "closed";

/**
 * One rank's transceiver: its pool, the offers it holds for others and the pulls it makes from others.
 *
 * Node stays alive from `send` and `receive` until the transfer has settled and its blocks are free; an idle transceiver does not keep it.
 * All methods are for the thread that opened it; none of them blocks.
 */
export class KvTransceiver implements Transceiver {
  readonly epoch: Epoch;
  readonly instance: string;
  readonly layout: Layout;
  readonly pool: BlockPool;
  /** Names of the paths that it has, the cheapest first, and what it has to do without. */
  readonly paths: Pick<OpenedPaths, "names" | "degraded">;
  readonly #options: ResolvedOptions;
  readonly #plane: NativePlane;
  readonly #offers: Offers;
  readonly #pulls: Pulls;
  readonly #ranks: RankedPulls;
  /** Of the model, that this rank holds. */
  readonly #layers: LayerSpan;
  readonly #counts: TransferCounts;
  readonly #ended: EndedSends;
  readonly #groups: readonly NativeGroup[];
  readonly #server: ControlServer;
  /** The last instance found to have our layout. */
  #fitting: InstanceLayout | null = null;
  #phase: Phase = "open";
  #closing: Promise<void> | undefined;
  readonly unusable: Promise<string>;
  #tellUnusable: (why: string) => void = () => {};

  private constructor(parts: Parts & { readonly paths: OpenedPaths }) {
    const { options, epoch } = parts;
    this.epoch = epoch;
    this.instance = options.instance;
    this.layout = options.layout;
    this.pool = parts.pool;
    this.paths = parts.paths;
    this.#options = options;
    this.#plane = parts.plane;
    this.#offers = parts.offers;
    this.#pulls = parts.pulls;
    this.#ranks = parts.ranks;
    this.#layers = shareOf(options.layout, options.parallel).layers;
    this.#counts = parts.counts;
    this.#ended = parts.ended;
    this.#groups = parts.options.native.groups;
    this.#server = parts.server;
    this.#plane.renewed = () => this.#renewed();
    this.unusable = new Promise((resolve) => {
      this.#tellUnusable = resolve;
    });
  }

  /**
   * Reserves the pool, opens the data plane and listens.
   * @throws KvError INVALID_ARGUMENT, NOT_PROVIDED, POOL_UNAVAILABLE, MEMORY_REFUSED, SOCKET_DIR_REFUSED, DESCRIPTOR_TOO_LONG,
   * BIND_FAILED, NATIVE_NOT_FOUND, NATIVE_BROKEN, NIXL_NOT_FOUND, NIXL_UNUSABLE, NIXL_FAILED, STAGING_UNAVAILABLE, CUDA_UNUSABLE, CUDA_FAILED
   */
  static async open(options: OpenOptions, hooks: TransceiverHooks = {}): Promise<KvTransceiver> {
    const resolved = resolveOptions(options);
    const epoch = newEpoch();
    const { check } = resolved;
    const paths = await openPaths(resolved);
    const plane = await NativePlane.open(loadNative(), {
      layout: resolved.native,
      blocks: resolved.blocks,
      socketDir: resolved.socketDir,
      epoch,
      check,
      ...(resolved.adopt === undefined ? {} : { adopt: resolved.adopt }),
      ...paths.plane,
    });
    try {
      return new KvTransceiver({ ...(await connectParts(resolved, epoch, { plane, nixl: paths.nixl }, hooks)), paths });
    } catch (error) {
      await plane.close();
      throw error;
    }
  }

  get endpoints(): { readonly tcp: string; readonly unix: string | null } {
    return this.#server.endpoints;
  }

  /** The pool for the addon's own engine. */
  get span(): NativePoolSpan {
    return this.#plane.native.span;
  }

  /** What the pool holds, and where: as the addon's own engine needs it. */
  get groups(): readonly NativeGroup[] {
    return this.#groups;
  }

  /** The GPU that holds the pool, and where there; null: it lies in memory of the host. */
  get gpu(): NativeGpu | null {
    return this.#plane.native.gpu;
  }

  /** A copy of one block, wherever the pool lies. @throws KvError CUDA_FAILED */
  readBlock(block: BlockId): Promise<Uint8Array> {
    const { blockBytes } = this;
    return this.#plane.copyOut(block * blockBytes, blockBytes);
  }

  /** Writes a block from its first byte on; of an offer, before its tokens are said to be ready. @throws KvError CUDA_FAILED */
  writeBlock(block: BlockId, bytes: Uint8Array): Promise<void> {
    const { blockBytes } = this;
    if (bytes.length > blockBytes) {
      throw new KvError("INVALID_ARGUMENT", { what: `${bytes.length} bytes`, why: `a block has ${blockBytes}` });
    }
    return this.#plane.copyIn(block * blockBytes, bytes);
  }

  /** The pool's memory; detached by `close`. @throws for pools over 4 GiB, and for those on a GPU (`readBlock`) */
  get memory(): ArrayBuffer {
    return this.#plane.native.memory;
  }

  get blockBytes(): number {
    return this.#plane.native.blockBytes;
  }

  /**
   * Offers the KV of one request to whoever holds the state. Before, during or after its prefill.
   * @throws KvError INVALID_ARGUMENT, OFFERS_FULL, DRAINING, CLOSED. `done` rejects with CANCELLED, OFFER_EXPIRED, LEASE_EXPIRED, TRANSFER_TIMEOUT,
   * RECEIVER_FAILED
   */
  send(options: SendOptions): SendTransfer {
    this.#mustTakeWork();
    const { requestId, tokens, blocks } = options;
    checkBlocks(blocks, tokens, this.pool, this.layout);
    const ready = options.ready ?? tokens;
    if (!Number.isInteger(ready) || ready < 0 || ready > tokens) {
      throw new KvError("INVALID_ARGUMENT", { what: `ready ${ready}`, why: `the offer has ${tokens} tokens` });
    }
    const offer = this.#offers.add({ requestId, tokens, blocks, ready, layers: this.#layers });
    const { tcp, unix } = this.endpoints;
    const rank = { rank: this.#options.rank, epoch: this.epoch, tcp, unix, token: offer.token };
    const { tpSize, ppSize, pipeline } = this.#options.parallel;
    const { instance, layout } = this;
    const state = encodeState({ instance, layout, tpSize, ppSize, pipeline, requestId, tokens, ranks: [rank] });
    return {
      requestId,
      state,
      done: offer.done,
      ready: (now, { layers } = {}) => {
        checkLayers(layers, this.layout.layers);
        offer.ready(now, layers);
      },
      finish: (first) => offer.finish(checkedFirst(first)),
      cancel: (reason = "the sender's caller cancelled it") => offer.cancel(reason),
    };
  }

  /**
   * Fetches what a state offers, or what a peer will offer, into blocks of this pool.
   * @throws KvError BAD_STATE, LAYOUT_MISMATCH, INVALID_ARGUMENT, NOT_PROVIDED, DRAINING, CLOSED. `done` rejects with CANCELLED, NO_OFFER,
   * GONE, BUSY, BAD_TOKEN, QUEUE_TIMEOUT, TRANSFER_TIMEOUT, SENDER_ABORTED, COPY_FAILED, PEER_UNREACHABLE, PEER_LOST, PEER_REFUSED,
   * STALE_EPOCH, PROTOCOL, NO_PATH, LAYOUT_MISMATCH, DIGEST_MISMATCH
   */
  receive(options: ReceiveOptions): ReceiveTransfer {
    this.#mustTakeWork();
    if ("peer" in options) return this.#receiveFrom(options);
    const offer = decodeState(options.state);
    this.#checkLayout(offer.instance, offer);
    checkBlocks(options.blocks, offer.tokens, this.pool, this.layout);
    const { skipTokens = 0 } = options;
    checkSkip(skipTokens, offer.tokens);
    const { instance: peer, requestId, tokens } = offer;
    const { blocks, signal } = options;
    return this.#ranks.pull(sourcesOf(offer), offer, { peer, requestId, tokens, skipTokens, blocks }, signal);
  }

  /** Generation-first: from a peer that has made no offer yet. */
  #receiveFrom(options: ReceiveBlocks & ReceiveFromPeer): ReceiveTransfer {
    const { peer, requestId, tokens, blocks, skipTokens = 0, signal } = options;
    checkBlocks(blocks, tokens, this.pool, this.layout);
    checkSkip(skipTokens, tokens);
    const endpoints = peer.endpoints.map(parseInfoEndpoint);
    const sizes = endpoints[0]?.sizes;
    if (sizes === undefined || sizes.tpSize * sizes.ppSize > RANKS_LIMIT) {
      throw new KvError("BAD_STATE", { why: `there are ${endpoints.length} endpoints of ${peer.instance}` });
    }
    this.#checkLayout(peer.instance, { layout: this.layout, ...sizes });
    const sources = endpoints.map(({ rank, target }) => ({ rank, target, token: null }));
    return this.#ranks.pull(sources, sizes, { peer: peer.instance, requestId, tokens, skipTokens, blocks }, signal);
  }

  get infoEndpoints(): readonly string[] {
    const { tcp, unix } = this.endpoints;
    const { rank, parallel: sizes } = this.#options;
    return [infoEndpoint({ target: { name: this.instance, epoch: this.epoch, tcp, unix }, rank, sizes })];
  }

  async awaitPull(requestId: RequestId, signal?: AbortSignal): Promise<void> {
    this.#mustTakeWork();
    this.#plane.hold();
    try {
      await this.#offers.waiting.arrival(requestId, signal);
    } finally {
      this.#plane.letGo();
    }
  }

  refuse(requestId: RequestId): void {
    this.#offers.waiting.refuse(requestId);
  }

  /** Ends the offer that a state of this transceiver names. @throws KvError BAD_STATE */
  release(state: string): CancelOutcome {
    const { requestId, ranks } = decodeState(state);
    const own = ranks.find(({ epoch }) => epoch === this.epoch);
    return own === undefined ? "not_found" : this.#offers.release(requestId, own.token);
  }

  decline(state: string): void {
    const offer = decodeState(state);
    const { instance: peer, requestId, tokens } = offer;
    if (this.#phase !== "open") return;
    using nothing = this.pool.allocate(0);
    this.#ranks.decline(sourcesOf(offer), offer, { peer, requestId, tokens, blocks: nothing });
  }

  waitForSenders(options: { readonly atLeast: number }): Promise<readonly EndedSend[]> {
    return this.#ended.wait(options.atLeast, () => this.#offers.open);
  }

  /** @internal */
  get blocksInUse(): Readonly<Record<"pinned" | "leased" | "quarantined", ReadonlySet<BlockId>>> {
    const offers = [...this.#offers.live];
    return {
      pinned: pinnedBy(offers),
      leased: pinnedBy(offers.filter(({ leased }) => leased)),
      quarantined: this.#pulls.quarantined,
    };
  }

  /** @internal */
  get plane(): DataPlane {
    return this.#plane;
  }

  stats(): TransceiverStats {
    const { total, free } = this.pool;
    const { pinned, leased, quarantined } = this.blocksInUse;
    const open = [...this.#offers.live];
    const { native } = this.#plane;
    return {
      blocks: {
        total,
        free,
        held: total - free,
        pinned: pinned.size,
        leased: leased.size,
        quarantined: quarantined.size,
      },
      sends: {
        waiting: this.#offers.waiting.open,
        open: open.length,
        leased: open.filter((offer) => offer.leased).length,
        ...this.#counts.sends,
      },
      receives: { open: this.#pulls.open, waiting: this.#pulls.waiting, ...this.#counts.receives },
      mismatches: this.#counts.mismatches,
      bytesReceived: this.#counts.bytesReceived,
      memory: { bytes: native.poolBytes, pages: native.pages, reason: native.whyNotHuge || null },
      peers: this.#pulls.peers,
      dropped: this.#counts.dropped,
      nixl: native.nixlAgents(),
    };
  }

  health(): TransceiverHealth {
    if (this.#phase !== "open") return { status: "unhealthy", reasons: [`it is ${this.#phase}`] };
    const quarantined = this.#pulls.quarantined.size;
    const nixl = this.#plane.native.nixlAgents();
    const reasons = nixl === null ? [] : nixlReasons(nixl);
    if (quarantined > 0) {
      reasons.push(`${quarantined} of ${this.pool.total} blocks are in quarantine: reads that were given up still run`);
    }
    if (reasons.length === 0) return { status: "ok", reasons };
    const unhealthy = nixl?.exhausted === true || quarantined > QUARANTINE_BUDGET * this.pool.total;
    return { status: unhealthy ? "unhealthy" : "degraded", reasons };
  }

  /** A NIXL agent is in the place of another, or none is any more. */
  #renewed(): void {
    const nixl = this.#plane.native.nixlAgents();
    if (this.#phase === "closed" || nixl === null) return;
    const reasons = nixlReasons(nixl);
    const log = createLogger({ name: "transceiver" });
    if (nixl.exhausted) {
      log.error({ nixl }, EXHAUSTED);
      this.#tellUnusable(EXHAUSTED);
    } else {
      log.warn({ nixl }, ["a new NIXL agent takes the place of another", ...reasons].join(": "));
    }
    this.#server.dropConnections("its NIXL agent is another one now");
  }

  /** Refuses new transfers and resolves when the open ones have ended; offers that are open can still be fetched. */
  async drain(): Promise<void> {
    if (this.#phase === "open") this.#phase = "draining";
    this.#offers.waiting.drain(new KvError("DRAINING", { what: `transceiver ${this.instance}` }));
    await Promise.all([this.#offers.empty(), this.#pulls.empty()]);
  }

  /**
   * Ends all transfers, waits until no lease that was granted runs (DONE, or the lease's end), unmaps. Idempotent; always lets Node end.
   * Blocks and memory of this transceiver must not be used afterwards.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#phase = "closed";
    this.#plane.hold();
    this.#pulls.cancelAll("the transceiver was closed");
    this.#offers.cancelAll("the transceiver was closed");
    // A receiver that was granted a lease may still read: the memory stays until it has said DONE or the lease is over.
    await this.#offers.empty();
    this.#pulls.closeLinks();
    await this.#server.close();
    await this.#plane.close();
  }

  #mustTakeWork(): void {
    const what = `transceiver ${this.instance}`;
    if (this.#phase === "closed") throw new KvError("CLOSED", { what });
    if (this.#phase === "draining") throw new KvError("DRAINING", { what });
  }

  #checkLayout(peer: string, { layout, tpSize, ppSize, pipeline }: InstanceLayout): void {
    const last = this.#fitting;
    // The states of one sender come with one layout object.
    if (layout === last?.layout && tpSize === last.tpSize && ppSize === last.ppSize && pipeline === undefined) return;
    const theirs = { layout, tpSize, ppSize, pipeline };
    const fields = instanceDifferences({ layout: this.layout, ...this.#options.parallel }, theirs);
    if (fields !== "") throw new KvError("LAYOUT_MISMATCH", { peer, fields });
    this.#fitting = pipeline === undefined ? theirs : null;
  }
}

const EXHAUSTED =
  "no NIXL agent is left: those that took the place of wedged ones are wedged too; restart this process";

function nixlReasons({ wedged, exhausted, quarantinedSlotBytes }: NixlAgentStats): string[] {
  const reasons = wedged.map(
    ({ agent, bytes, slotBytes }) =>
      `NIXL agent ${agent} does not come back: ${bytes} bytes of blocks and ${slotBytes} bytes of staging slots stay in quarantine`,
  );
  if (quarantinedSlotBytes > 0) {
    reasons.push(
      `${quarantinedSlotBytes} bytes of staging slots are in quarantine: reads that were given up still run`,
    );
  }
  return exhausted ? [...reasons, EXHAUSTED] : reasons;
}

/** Offers of requests with one prefix share blocks: each counts once. */
const pinnedBy = (offers: readonly Offer[]): ReadonlySet<BlockId> => new Set(offers.flatMap(({ pinned }) => pinned));
