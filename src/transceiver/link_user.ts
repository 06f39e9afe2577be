import type { KvError } from "../errors.ts";
import type { CapabilityToken, RequestId, TransferId } from "../ids.ts";
import type { Layout } from "../layout.ts";
import type { DataPlane } from "./data_plane.ts";
import type { Dial, DialIdentity } from "./dial.ts";
import type { PeerLink } from "./peer_link.ts";
import type { FrameOf, ReceiverFrame } from "./protocol.ts";

/** A receiver's session as its link sees it. */
export interface LinkUser {
  readonly offer: { readonly requestId: RequestId; readonly token: CapabilityToken | null };
  /** The attempt that the sender may hold a lease for, named in RENEW. */
  readonly renewing: TransferId | null;
  /** The attempt that this side still uses or may still read, named in HELLO. */
  readonly live: TransferId | null;
  linkUp(): void;
  linkLost(error: KvError): void;
  linkFailed(error: KvError): void;
  staleEpoch(error: KvError): void;
  senderDead(error: KvError): void;
  granted(frame: FrameOf<"GRANT">): void;
  refused(frame: FrameOf<"REFUSE">): void;
  ready(frame: FrameOf<"READY">): void;
  finished(frame: FrameOf<"FINISHED">): void;
  aborted(frame: FrameOf<"ABORT">): void;
  renewed(writtenMs: number): void;
  leaseLost(): void;
  /** Once a renewal period. */
  tick(nowMs: number): void;
}

export interface LinkSurroundings {
  readonly plane: DataPlane;
  readonly identity: DialIdentity;
  readonly dial: Dial;
  readonly layout: Layout;
  readonly ownLeaseMs: number;
  countDropped(what: string): void;
  /** Counts up for this side's epoch, over all links: a sender drops an older connection for a newer one, and remembers the number. */
  nextConnection(): number;
  /** What the sender said that it can serve. */
  welcomed(limits: FrameOf<"WELCOME">["limits"]): void;
  /** For RENEW. Counts up for this side's epoch, over all links: a new link to a known sender never repeats a number (lease-model.md section 1). */
  nextSeq(): number;
  /** The link holds nothing any more. */
  unused(link: PeerLink): void;
}

/** What a sender could not be told yet. */
export interface Untold {
  readonly transferId: TransferId;
  readonly frames: readonly ReceiverFrame[];
  readonly offer: LinkUser["offer"];
  /** What this could tell is over then. */
  readonly untilMs: number;
}

/** Of a PULL, without what all frames of a link have. */
export type PullFields = Omit<FrameOf<"PULL">, "type" | "se" | "re">;
