import type { KvError } from "../errors.ts";
import type { CapabilityToken, Epoch, RequestId, TransferId } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { FirstTokens, TransferReport } from "./api.ts";
import type { DataPlane } from "./data_plane.ts";
import type { SessionObserver } from "./observer.ts";
import type { FrameOf, RefuseCode, SenderFrame } from "./protocol.ts";
import type { SenderSession } from "./sender_session.ts";
import type { Refusal } from "./sender_table.ts";
import type { VerifyMode } from "./verification.ts";

export interface SenderLimits {
  readonly leaseMs: number;
  /** kv_transfer_timeout_ms; null: no bound of its own. */
  readonly transferMs: number | null;
  /** How long an offer that nobody fetches stays pinned after its prefill. */
  readonly offerMs: number;
}

/** What all sender sessions of one transceiver share. */
export interface SenderHouse {
  readonly plane: DataPlane;
  readonly epoch: Epoch;
  readonly limits: SenderLimits;
  readonly tokensPerBlock: number;
  /** To the current connection of a receiver epoch; false: there is none, the frame is lost. */
  readonly write: (receiver: Epoch, frame: SenderFrame) => boolean;
  readonly countDropped: (what: string) => void;
  readonly observer: SessionObserver | undefined;
}

/** The offer that a session belongs to. */
export interface SessionOwner {
  readonly requestId: RequestId;
  readonly tokens: number;
  readonly token: CapabilityToken;
  bound(session: SenderSession, before: TransferId | null, now: TransferId): void;
  ended(session: SenderSession, report: TransferReport | null, error: KvError | null): void;
}

/** Tokens [0, n) are visible in the model's first layers. */
export interface PartlyReady {
  readonly tokens: number;
  readonly layers: number;
}

/** What stands when a session begins. */
export interface SessionStart {
  readonly blocks: BlockHold;
  readonly ready: number;
  readonly ahead: PartlyReady | null;
  readonly first: FirstTokens | null;
}

/** Who asks: a PULL of one receiver epoch. */
export interface PullAsked {
  readonly receiver: Epoch;
  readonly transferId: TransferId;
  /** null: of a member of the cluster, which needs none (generation-first). */
  readonly token: CapabilityToken | null;
  readonly sameLayout: boolean;
  readonly draining: boolean;
  /** The RENEW heard last while it waited for the offer, 0: none. */
  readonly heard: number;
  /** Tokens it reads, and what it compares of them. */
  readonly from: number;
  readonly to: number;
  readonly verify: VerifyMode;
  /** It can read first layers of tokens whose other layers are not computed yet. */
  readonly byLayer: boolean;
  /** By which it reaches this side, the cheapest first. */
  readonly paths: readonly string[];
  /** What of this rank's KV it reads; default all. */
  readonly part?: RankPart | undefined;
  /** Ranks of another instance read this offer. */
  readonly taken?: boolean;
}

export const refusals: Readonly<Record<Refusal, { readonly code: RefuseCode; readonly text: string }>> = {
  refuseNoOffer: { code: "NO_OFFER", text: "no such offer is held here" },
  refuseGone: { code: "GONE", text: "the offer has ended" },
  refuseBusy: { code: "BUSY", text: "leased to another receiver" },
  refuseBadToken: { code: "BAD_TOKEN", text: "the token is not this offer's" },
  refuseLayout: { code: "LAYOUT", text: "the KV layouts differ" },
  refuseDraining: { code: "DRAINING", text: "this side is closing" },
  refuseQueueTimeout: { code: "QUEUE_TIMEOUT", text: "no offer was made in time" },
};

export function refusalFrame(
  refusal: Refusal,
  epoch: Epoch,
  asked: Pick<PullAsked, "receiver" | "transferId">,
  retryAfterMs: number,
): FrameOf<"REFUSE"> {
  const { receiver: re, transferId } = asked;
  return { type: "REFUSE", se: epoch, re, transferId, retryAfterMs, ...refusals[refusal] };
}
