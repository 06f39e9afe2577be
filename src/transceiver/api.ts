import type { BlockId, Epoch, RequestId } from "../ids.ts";
import type { Layout } from "../kv/layout.ts";
import type { BlockOrder, Placement } from "../kv/placement.ts";
import type { BlockHold, BlockPool } from "../kv/pool.ts";
import type { Parallel } from "../kv/ranks.ts";
import type { PageKind } from "../native/plane_binding.ts";
import type { WireTelemetry } from "./data_plane.ts";
import type { VerifyMode } from "./verification.ts";

/** `cache_transceiver_config` of the YAML, same names, units and defaults (spec system.md S13-S28). */
export interface TransceiverConfig {
  readonly backend?: "DEFAULT" | "UCX" | "NIXL" | null;
  /** Tokens that one staging slot holds; longer transfers stream through it. null: as many as 8 MiB hold. */
  readonly max_tokens_in_buffer?: number | null;
  /** Whole transfer, each side, from GRANT; also the limit of a queue wait and of an unfetched offer. null: no bound on the transfer. */
  readonly kv_transfer_timeout_ms?: number | null;
  readonly kv_transfer_sender_future_timeout_ms?: number | null;
}

export interface OpenOptions {
  readonly config?: TransceiverConfig;
  /** Of the whole model, whatever part of it this rank holds. */
  readonly layout: Layout;
  /** This rank's place in its instance; default: it holds everything. */
  readonly parallel?: Parallel;
  readonly pool:
    | {
        readonly memory: "host";
        readonly blocks: number;
        /** Inside a block: tokens of a head together ("HND", default) or heads of a token. The peer's may be the other. */
        readonly order?: BlockOrder;
      }
    | {
        /** A GPU as this process counts them, "cuda" is the first; its peers are pools on GPUs of the same host. */
        readonly memory: "cuda" | `cuda:${number}`;
        readonly blocks: number;
        readonly order?: BlockOrder;
      }
    | {
        /** Regions of memfds, whole pages but for the last; two transceivers of a process may adopt exactly the same. */
        readonly adopt: readonly { readonly fd: number; readonly offset: number; readonly bytes: number }[];
        readonly blocks: number;
        readonly order?: BlockOrder;
        /** Where each group lies; default as in a pool of our own, blocks one after another. */
        readonly placement?: Placement;
      };
  /** Control endpoint; a unix socket for peers on this host stands beside it. Default 127.0.0.1, free port. */
  readonly listen?: {
    readonly host: string;
    readonly port: number;
    readonly tls?: { readonly cert: string; readonly key: string; readonly ca?: string };
  };
  /** Offers open at the same time; `send` refuses more with OFFERS_FULL. Default 1024. */
  readonly maxOffers?: number;
  /** Pulls that run at the same time, in all and from one peer; the others wait, the smallest first. Defaults 8. */
  readonly maxConcurrentPulls?: number;
  readonly maxConcurrentPullsPerPeer?: number;
  /** Pulls that one peer runs from here at the same time; it is told when it connects. Default 8. */
  readonly maxConcurrentSends?: number;
  /** Staging slots of nixl_staged, for what is sent and as many for what is received. Default 2. */
  readonly stagingSlots?: number;
  /**
   * What `receive` compares with XXH3 digests that the sender computes: "off" nothing, "sampled" one block in 16, "full" every block.
   * A block that differs is read once more; then the transfer fails with DIGEST_MISMATCH. Default "sampled".
   */
  readonly verify?: VerifyMode;
  readonly lease?: { readonly leaseMs?: number; readonly stallMs?: number; readonly strict?: boolean };
  /**
   * This path and no other: "shared_memory" (peers on this host), "cuda_peer" (pools on GPUs of this host), "nixl_direct" (NIXL, any host,
   * plug-in UCX only) or "nixl_staged" (NIXL through staging slots). Default KVT_PATH, else null: the cheapest that works.
   */
  readonly path?: "shared_memory" | "cuda_peer" | "nixl_direct" | "nixl_staged" | null;
  /** False: peers on this host are reached as those on others are. Default true. */
  readonly sameHost?: boolean;
  /** Name of the instance in messages, metrics and the protocol; default host:pid. */
  readonly instance?: string;
  /** Cluster secret (KVT_AUTH_TOKEN). */
  readonly authToken?: string;
  /** 0700 directory for unix sockets; default KVT_SOCKET_DIR, $XDG_RUNTIME_DIR/kvt, or <tmp>/kvt-<uid>. */
  readonly socketDir?: string;
}

/** What a finished prefill hands over in generation-first scheduling; this library passes it on as it is. */
export interface FirstTokens {
  /** 1 to 64 token ids. */
  readonly firstTokens: readonly number[];
  /** One of each token, of any shape that msgpack can carry. */
  readonly firstLogProbs?: readonly unknown[];
  /** Prompt tokens that the sender's side had in its prefix cache. */
  readonly cachedTokens?: number;
}

/** What a transfer did. `gbPerS` = bytes / movingMs (move_gb_per_s of design.md section 11), decimal. */
export interface TransferReport {
  readonly requestId: RequestId;
  readonly bytes: number;
  readonly blocks: number;
  readonly tokens: number;
  /** From the call to the end. */
  readonly ms: number;
  /** Receiver: waiting for a turn (`maxConcurrentPulls`). Sender: from the offer to the first GRANT. */
  readonly queueMs: number;
  /** Receiver: for a connection to the sender and its mapped pool; about 0 over a link that stands. */
  readonly connectMs: number;
  /** Receiver: for the sender's GRANT, and for prefill while nothing that it had announced was left to read; also until a retry. */
  readonly waitMs: number;
  /** Receiver: native time spent copying, summed over jobs. Sender: from GRANT to DONE. */
  readonly movingMs: number;
  /** Receiver: comparing digests with what arrived. */
  readonly verifyMs: number;
  readonly gbPerS: number;
  readonly path: string;
  /** Reads that it took: one for what was ready, one for each announcement after that. */
  readonly chunks: number;
  /** Receiver: what the plan compiled to, and the contiguous copies in it. */
  readonly runs: number;
  readonly pieces: number;
  readonly attempts: number;
  /** Receiver: of bytes that went over NIXL, as its own telemetry has it. */
  readonly wire?: WireTelemetry;
  /** Of a receive without a state. */
  readonly first?: FirstTokens;
}

/** What cancelling really achieved (design.md section 5). */
export type CancelOutcome = "not_found" | "already_complete" | "cancelled" | "in_flight";

export interface SendOptions {
  readonly requestId: RequestId;
  /** Tokens of the sequence, all of which `blocks` must hold room for, or those that windows leave where every group of the layout has one. */
  readonly tokens: number;
  /** The session takes a share of its own: the caller may release its hold at once. */
  readonly blocks: BlockHold;
  /** Tokens computed already; default: all. With less, call `ready` as prefill goes on. */
  readonly ready?: number;
}

/** One offer: KV that this side holds for one request (SendTransfer). */
export interface SendTransfer {
  readonly requestId: RequestId;
  /** Base64 for `encoded_opaque_state`; the right to fetch. */
  readonly state: string;
  /**
   * Tokens [0, n) are visible in memory from now on. Monotone. With `layers`: only in the model's first ones, and a receiver that can take
   * them so reads those while later layers are computed. @throws KvError INVALID_ARGUMENT
   */
  ready(tokens: number, options?: { readonly layers?: number }): void;
  /** Prefill is over: all tokens are visible, and a receiver that pulled without a state gets `first` with the last of them. */
  finish(first: FirstTokens): void;
  /** Settles once: resolves when the receiver confirmed, rejects with KvError otherwise. Blocks are released by then. */
  readonly done: Promise<TransferReport>;
  cancel(reason?: string): CancelOutcome;
}

/** A sender as it names itself, before it has made any offer. */
export interface PeerAddress {
  /** For messages. */
  readonly instance: string;
  /** Its `infoEndpoints`. */
  readonly endpoints: readonly string[];
}

export type ReceiveOptions = ReceiveBlocks & (ReceiveByState | ReceiveFromPeer);

/** Context-first: what the sender's `state` names. */
export interface ReceiveByState {
  readonly state: string;
}

/**
 * Generation-first: KV that `peer` will offer under `requestId`. The pull waits there for the offer, and ends when the sender has called
 * `finish`; the report has its first tokens then. Only between members of one cluster: cluster secret, or the same user on one host.
 */
export interface ReceiveFromPeer {
  readonly peer: PeerAddress;
  readonly requestId: RequestId;
  /** Tokens of the sequence; the sender's must be as many. */
  readonly tokens: number;
}

export interface ReceiveBlocks {
  /** Blocks of this pool in token order, covering the whole sequence, or at its end what windows leave (as in `send`). Shared by the session until no read can touch them. */
  readonly blocks: BlockHold;
  /** Tokens already here (reused prefix); they are not fetched. */
  readonly skipTokens?: number;
  readonly signal?: AbortSignal;
}

export interface ReceiveTransfer {
  readonly requestId: RequestId;
  /** Tokens of the offer. */
  readonly tokens: number;
  readonly done: Promise<TransferReport>;
  /** Resolves after `done` has settled, when no read can touch the blocks any more and the session has given its share back (I3). */
  readonly released: Promise<void>;
  /** Yields the number of leading tokens that have arrived, rising, ends with the transfer (throws what `done` rejects with). */
  readonly progress: AsyncIterable<number>;
  cancel(reason?: string): CancelOutcome;
}

export interface TransceiverStats {
  readonly blocks: {
    readonly total: number;
    readonly free: number;
    readonly held: number;
    /** Pinned by offers and grants. */
    readonly pinned: number;
    /** Of these, under a lease: a receiver may read them. */
    readonly leased: number;
    /** Held only because a transport may still touch them (I3). */
    readonly quarantined: number;
  };
  readonly sends: {
    /** Receivers that wait for an offer which has not been made (generation-first). */
    readonly waiting: number;
    readonly open: number;
    readonly leased: number;
    readonly completed: number;
    readonly failed: number;
    readonly cancelled: number;
  };
  readonly receives: {
    readonly open: number;
    /** Of these, waiting for a turn. */
    readonly waiting: number;
    readonly completed: number;
    readonly failed: number;
    readonly cancelled: number;
  };
  readonly bytesReceived: number;
  /**
   * The pool's memory. `hugetlb`: huge pages that were set aside (vm.nr_hugepages); when too few of them are free, `transparent` (the
   * kernel gives huge pages where it can) or `normal`, and `reason` says why. Of several ranks, the worst.
   */
  readonly memory: { readonly bytes: number; readonly pages: PageKind; readonly reason: string | null };
  /** Blocks that arrived with another digest than their sender's (`verify`). */
  readonly mismatches: number;
  readonly peers: readonly {
    readonly instance: string;
    readonly epoch: Epoch;
    readonly endpoint: string;
    readonly path: string;
    readonly connected: boolean;
    readonly gbPerS: number | null;
  }[];
  readonly dropped: Readonly<Record<string, number>>;
  /** null: no path over NIXL is open. */
  readonly nixl: NixlAgentStats | null;
}

export interface TransceiverHealth {
  readonly status: "ok" | "degraded" | "unhealthy";
  readonly reasons: readonly string[];
}

/** The NIXL agents of one transceiver, one after another. */
export interface NixlAgentStats {
  /**
   * Those that don't come back from a call of NIXL; `bytes` of blocks stay in quarantine, as such an agent may still write them, and all its
   * staging slots.
   */
  readonly wedged: readonly { readonly agent: string; readonly bytes: number; readonly slotBytes: number }[];
  /** New agents in the place of wedged ones. */
  readonly replaced: number;
  /** Agents that ended in good order: a read of theirs never did, or they had met too many peers. */
  readonly retired: number;
  /** The last that may be has wedged: nothing moves over NIXL any more in this process. */
  readonly exhausted: boolean;
  /** Of agents that are not wedged: staging slots in quarantine, as reads that were given up still run. */
  readonly quarantinedSlotBytes: number;
}

/** The public surface of `KvTransceiver`; src/transceiver/transceiver.ts implements it. */
export interface Transceiver extends AsyncDisposable {
  readonly epoch: Epoch;
  readonly instance: string;
  readonly pool: BlockPool;
  readonly layout: Layout;
  readonly endpoints: { readonly tcp: string; readonly unix: string | null };
  send(options: SendOptions): SendTransfer;
  receive(options: ReceiveOptions): ReceiveTransfer;
  /** Where its ranks can be asked for KV before it has been offered, in their order; no secret. */
  readonly infoEndpoints: readonly string[];
  /**
   * Resolves when a receiver waits for this request, so that nothing is computed that nobody will fetch. Rejects with QUEUE_TIMEOUT, CLOSED,
   * DRAINING, or the signal's reason.
   */
  awaitPull(requestId: RequestId, signal?: AbortSignal): Promise<void>;
  /** There will be no offer of this request: who waits for it is told now, who asks later at once. */
  refuse(requestId: RequestId): void;
  /** Cancels the offer that a state names; the state's token is the right to do so (POST /kv/release). */
  release(state: string): CancelOutcome;
  /**
   * Tells who made the offer of a state that nobody here will fetch it, so that its blocks are free at once and not by its timer. Nobody
   * waits for that; a sender that can't be reached has its timer. @throws KvError BAD_STATE
   */
  decline(state: string): void;
  /** Resolves with the reports or errors of senders that have ended, at the latest after kv_transfer_sender_future_timeout_ms. */
  waitForSenders(options: { readonly atLeast: number }): Promise<readonly EndedSend[]>;
  stats(): TransceiverStats;
  health(): TransceiverHealth;
  /** Resolves, if ever, with the sentence that says why only a new process helps: drain this one and end it. */
  readonly unusable: Promise<string>;
  /** Refuses new work and resolves when all transfers have ended. */
  drain(): Promise<void>;
  close(): Promise<void>;
}

export interface EndedSend {
  readonly requestId: RequestId;
  readonly report?: TransferReport;
  readonly error?: Error;
}

export type { BlockHold, BlockId, BlockPool, Layout, WireTelemetry };
