import type { KvError } from "../errors.ts";
import type { CapabilityToken, Epoch, RequestId } from "../ids.ts";
import type { BlockHold } from "../kv/pool.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { TransferReport } from "./api.ts";
import type { DataPlane } from "./data_plane.ts";
import type { DialTarget } from "./dial.ts";
import type { SessionObserver } from "./observer.ts";
import type { PeerLink } from "./peer_link.ts";
import type { FrameOf } from "./protocol.ts";
import type { PullTurns } from "./pull_turns.ts";
import type { LayerSpan } from "./read_front.ts";
import type { ReceiverSession } from "./receiver_session.ts";
import type { VerifyMode } from "./verification.ts";

export interface ReceiverLimits {
  /** Waiting for a turn, a connection and a GRANT. */
  readonly queueMs: number;
  /** From GRANT; null: no bound of its own. */
  readonly transferMs: number | null;
  /** Reads that were posted and make no progress. */
  readonly stallMs: number;
  readonly strict: boolean;
  readonly verify: VerifyMode;
}

/** What all receiver sessions of one transceiver share. */
export interface ReceiverHouse {
  readonly plane: DataPlane;
  readonly limits: ReceiverLimits;
  readonly turns: PullTurns<ReceiverSession>;
  readonly reader: FrameOf<"PULL">["reader"];
  readonly tokensPerBlock: number;
  /** Of the model, that this rank holds. */
  readonly layers: LayerSpan;
  readonly observer: SessionObserver | undefined;
  /** The link to an offer's sender, made when it is first wanted. */
  link(target: DialTarget): PeerLink;
  /** Blocks arrived with another digest than the sender's. */
  countMismatches(blocks: number): void;
  /** The outcome is told; blocks may still be in quarantine. */
  settled(sender: Epoch, report: TransferReport | null, error: KvError | null): void;
  /** The blocks are given back. */
  released(session: ReceiverSession): void;
}

export interface WantedOffer {
  readonly requestId: RequestId;
  /** null: the offer does not stand yet, and the transfer ends when its first tokens are here (generation-first). */
  readonly token: CapabilityToken | null;
  readonly peer: string;
  readonly tokens: number;
  readonly skipTokens: number;
  readonly blocks: BlockHold;
  /** What of the sender's KV is read; default all. */
  readonly part?: RankPart;
}
