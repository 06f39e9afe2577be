import { KvError } from "../errors.ts";
import type { BlockId, Epoch } from "../ids.ts";
import { BlockPool } from "../kv/pool.ts";
import { type ParallelSizes, shareOf } from "../kv/ranks.ts";
import { createLogger } from "../observability/log.ts";
import { ControlServer, isLoopback } from "./control_server.ts";
import type { DataPlane } from "./data_plane.ts";
import { dial } from "./dial.ts";
import { EndedSends } from "./ended_sends.ts";
import type { NativePlane } from "./native_plane.ts";
import type { OwnNixl } from "./nixl_pairing.ts";
import type { SessionObserver } from "./observer.ts";
import { Offers } from "./offers.ts";
import type { ResolvedOptions } from "./open_options.ts";
import { PeerRanks } from "./peer_ranks.ts";
import { layoutDigest } from "./proof.ts";
import type { FrameOf } from "./protocol.ts";
import { Pulls } from "./pulls.ts";
import { RankedPulls } from "./ranked_pulls.ts";
import { Receivers } from "./receivers.ts";
import { fastestNetwork, isThisMachine, SlowPaths } from "./slow_path.ts";
import { controlSocketPath } from "./socket_directory.ts";
import { TransferCounts } from "./transfer_counts.ts";

/** Blocks that KVT_CHECK fills in one call. */
const FILL_STEP = 4096;

/** @internal For tests, and for the ranks of one instance. */
export interface TransceiverHooks {
  readonly observer?: SessionObserver;
  /** Puts a fault decorator around the data plane, as the sessions see it. */
  readonly plane?: (real: DataPlane) => DataPlane;
  /** Of another rank of this instance: a block id names a block in the pool of each. */
  readonly pool?: BlockPool;
}

function readerOf({ rank, parallel }: ResolvedOptions): FrameOf<"PULL">["reader"] {
  const { tpSize, ppSize, pipeline, dpRank } = parallel;
  return {
    rank,
    tpSize,
    ppSize,
    ...(pipeline === undefined ? {} : { pipeline: [...pipeline] }),
    ...(dpRank === undefined ? {} : { dpRank }),
  };
}

/** What a transceiver is made of. */
export interface Parts {
  readonly options: ResolvedOptions;
  readonly epoch: Epoch;
  readonly plane: NativePlane;
  readonly pool: BlockPool;
  readonly offers: Offers;
  readonly pulls: Pulls;
  readonly ranks: RankedPulls;
  readonly counts: TransferCounts;
  readonly ended: EndedSends;
  readonly server: ControlServer;
}

/** Listens, and puts together what a transceiver is made of. */
export async function connectParts(
  options: ResolvedOptions,
  epoch: Epoch,
  { plane: native, nixl }: { readonly plane: NativePlane; readonly nixl: OwnNixl | undefined },
  hooks: TransceiverHooks,
): Promise<Parts> {
  const { layout, leaseMs, stallMs, queueMs, transferMs, instance, authToken: secret } = options;
  const plane = hooks.plane?.(native) ?? native;
  const counts = new TransferCounts();
  const ended = new EndedSends(plane, options.senderFutureMs);
  const receivers = new Receivers();
  const countDropped = (what: string): void => counts.drop(what);
  const { observer } = hooks;
  const offers = new Offers({
    plane,
    epoch,
    limits: { leaseMs, transferMs, offerMs: queueMs },
    tokensPerBlock: layout.tokensPerBlock,
    maxOpen: options.maxOffers,
    write: (receiver, frame) => receivers.write(receiver, frame),
    countDropped,
    ended: (offer, report, error) => {
      counts.sendEnded(error);
      const { requestId } = offer;
      ended.add({ requestId, ...(report === null ? {} : { report }), ...(error === null ? {} : { error }) });
    },
    observer,
  });
  const peerRanks = new PeerRanks(layout, options.parallel);
  const digest = layoutDigest(layout);
  const pulls = new Pulls({
    plane,
    layout,
    layers: shareOf(layout, options.parallel).layers,
    limits: { queueMs, transferMs, stallMs, strict: options.strict, verify: options.verify },
    leaseMs,
    maxConcurrent: { total: options.maxConcurrentPulls, perPeer: options.maxConcurrentPullsPerPeer },
    reader: readerOf(options),
    identity: {
      epoch,
      instance,
      rank: options.rank,
      layoutDigest: digest,
      secret,
      ca: options.listen.tls?.ca,
      socketDir: options.socketDir,
      nixl,
    },
    dial,
    counts,
    observer,
    slow: slowPaths(),
  });
  const context = {
    plane,
    epoch,
    instance,
    layout,
    layoutDigest: digest,
    limits: { leaseMs, stallMs, pulls: options.maxConcurrentSends },
    secret,
    nixl,
    offers,
    receivers,
    readersOf: (reader: ParallelSizes) => peerRanks.readers(reader),
    partRead: (reader: ParallelSizes & { readonly rank: number }) => peerRanks.partFor(reader.rank, reader),
    countDropped,
  };
  const { host, port, tls } = options.listen;
  const unix = controlSocketPath(options.socketDir, epoch);
  const server = await ControlServer.open(context, { host, port, tls, unix });
  if (tls === undefined && !isLoopback(host)) {
    createLogger({ name: "transceiver" }).warn(
      { endpoint: server.endpoints.tcp },
      "control frames and capability tokens cross the network in the clear; set listen.tls (control.tls)",
    );
  }
  return {
    options,
    epoch,
    plane: native,
    pool: openPool(options, native, hooks.pool),
    offers,
    pulls,
    ranks: new RankedPulls(pulls, peerRanks),
    counts,
    ended,
    server,
  };
}

const slowPaths = (): SlowPaths =>
  new SlowPaths({
    network: fastestNetwork,
    isHere: isThisMachine,
    env: process.env,
    warn: (fields, text) => createLogger({ name: "transceiver" }).warn(fields, text),
  });

/** The ids of the blocks; with KVT_CHECK, the plane's memory is filled while they are free. */
function openPool({ blocks, check }: ResolvedOptions, plane: NativePlane, shared: BlockPool | undefined): BlockPool {
  const pool = shared ?? new BlockPool({ blocks, blockBytes: plane.native.blockBytes });
  // A pool on a GPU is not looked into.
  if (!check || plane.native.gpu !== null) return pool;
  for (let from = 0; from < blocks; from += FILL_STEP) {
    plane.fillReleased(Array.from({ length: Math.min(FILL_STEP, blocks - from) }, (_, at) => (from + at) as BlockId));
  }
  pool.addHooks({
    freed: (ids) => plane.fillReleased(ids),
    taken: (ids) => {
      const touched = plane.findTouched(ids);
      if (touched === undefined) return;
      throw new KvError("INTERNAL", { where: "block pool", why: `block ${touched} was written while it was free` });
    },
  });
  return pool;
}
