import type { Socket } from "node:net";
import type { Epoch, RequestId } from "../ids.ts";
import type { Layout } from "../kv/layout.ts";
import type { RankPart } from "../kv/ranks.ts";
import type { DataPlane, PlaneTimer } from "./data_plane.ts";
import { type ChannelListener, FrameChannel } from "./frame_channel.ts";
import { type OwnNixl, onlyNixlRefusal } from "./nixl_pairing.ts";
import type { Offers } from "./offers.ts";
import { equalBytes, newNonce, proofOf } from "./proof.ts";
import {
  decodeReceiverFrame,
  FRAME_LIMIT,
  type Frame,
  type FrameOf,
  PROTOCOL_VERSION,
  type ReceiverFrame,
} from "./protocol.ts";
import type { Receivers } from "./receivers.ts";

/** An unproven peer may hold a connection so long, and send so much. */
const UNPROVEN_MS = 1000;
const UNPROVEN_BYTES = 4096;

/** What every served connection of one transceiver shares. */
export interface ServedContext {
  readonly plane: DataPlane;
  readonly epoch: Epoch;
  readonly instance: string;
  readonly layout: Layout;
  readonly layoutDigest: string;
  readonly limits: { readonly leaseMs: number; readonly stallMs: number; readonly pulls?: number };
  readonly secret: string | undefined;
  readonly nixl?: OwnNixl | undefined;
  readonly offers: Offers;
  readonly receivers: Receivers;
  /** Which ranks of a reader's instance read this rank's KV. */
  readersOf(reader: FrameOf<"PULL">["reader"]): readonly number[];
  /** What of it such a rank reads; default all. */
  partRead?(reader: FrameOf<"PULL">["reader"]): RankPart;
  countDropped(what: string): void;
}

interface Owner {
  proven(): void;
  closed(): void;
}

/** The sender's end of one connection: handshake, then the frames of one receiver epoch. */
export class ServedConnection implements ChannelListener {
  readonly #context: ServedContext;
  readonly #channel: FrameChannel;
  readonly #local: boolean;
  readonly #owner: Owner;
  readonly #nonce = newNonce();
  readonly #limit: PlaneTimer;
  #receiver: Epoch | null = null;
  #sameLayout = false;
  #isMember = false;
  #instance = "";
  #number = 0;

  /** @param local over the unix socket in our own directory: proven by that */
  constructor(context: ServedContext, socket: Socket, local: boolean, owner: Owner) {
    this.#context = context;
    this.#local = local;
    this.#owner = owner;
    const bytes = local ? FRAME_LIMIT : UNPROVEN_BYTES;
    this.#channel = new FrameChannel(socket, this, () => context.plane.nowMs(), { frame: bytes, bytes });
    this.#limit = context.plane.timer(context.plane.nowMs() + UNPROVEN_MS, () =>
      this.#channel.close(`no HELLO within ${UNPROVEN_MS} ms`),
    );
  }

  /** Counts up for each receiver epoch. */
  get number(): number {
    return this.#number;
  }

  challenge(): void {
    const secret = this.#context.secret !== undefined;
    this.#channel.send({ type: "CHALLENGE", version: PROTOCOL_VERSION, nonce: this.#nonce, secret });
  }

  send(frame: Frame): boolean {
    return this.#channel.send(frame);
  }

  close(why: string): void {
    this.#channel.close(why);
  }

  end(why: string): void {
    this.#channel.end(why);
  }

  frame(bytes: Uint8Array): void {
    const decoded = decodeReceiverFrame(bytes);
    if (!decoded.ok) {
      this.#context.countDropped(decoded.unknown ? "unknown type" : "broken frame");
      // A stranger is told nothing about the protocol.
      if (this.#receiver === null) this.#channel.close(decoded.why);
      else if (decoded.unknown) this.#error("UNKNOWN_TYPE", decoded.why);
      else this.#refuse("PROTOCOL", decoded.why);
      return;
    }
    const { frame } = decoded;
    if (frame.type === "HELLO") this.#hello(frame);
    else if (this.#receiver === null) this.#channel.close(`${frame.type} before HELLO`);
    else this.#take(frame, this.#receiver);
  }

  closed(_why: string): void {
    this.#limit.clear();
    if (this.#receiver !== null) this.#context.receivers.gone(this.#receiver, this);
    this.#owner.closed();
  }

  #take(frame: Exclude<ReceiverFrame, { type: "HELLO" }>, receiver: Epoch): void {
    const { epoch, offers } = this.#context;
    if (frame.type === "ERROR") {
      this.#context.countDropped(`ERROR ${frame.code}`);
      return;
    }
    if (frame.re !== receiver) {
      this.#context.countDropped("frame of another epoch");
      return;
    }
    if (frame.se !== epoch) {
      this.#context.countDropped("stale epoch");
      const transferId = "transferId" in frame ? { transferId: frame.transferId } : {};
      this.send({ type: "STALE_EPOCH", se: epoch, re: receiver, ...transferId });
      return;
    }
    switch (frame.type) {
      case "PULL": {
        const ranks = this.#context.readersOf(frame.reader);
        const fits = this.#sameLayout && ranks.includes(frame.reader.rank);
        const part = fits ? this.#context.partRead?.(frame.reader) : undefined;
        const side = { sameLayout: fits, ranks, isMember: this.#isMember, part, instance: this.#instance };
        offers.pull(receiver, frame, side);
        break;
      }
      case "RENEW":
        offers.renew(receiver, frame);
        break;
      case "DONE":
        offers.done(receiver, frame);
        break;
      case "PING":
        this.send({ type: "PONG", se: epoch, re: receiver, n: frame.n });
        break;
      case "PONG":
        break;
    }
  }

  #hello(hello: FrameOf<"HELLO">): void {
    const context = this.#context;
    if (this.#receiver !== null) {
      this.#refuse("PROTOCOL", "a second HELLO");
      return;
    }
    if (hello.version !== PROTOCOL_VERSION) {
      this.#refuse("VERSION", `version ${hello.version} is not ${PROTOCOL_VERSION}`);
      return;
    }
    // Over the unix socket no key is needed: only this user reaches it.
    const key = this.#local ? null : this.#keyOf(hello);
    if (key === undefined) {
      if (hello.key === "secret") this.#refuse("BAD_PROOF", "this side has no cluster secret (KVT_AUTH_TOKEN)");
      else this.#refuse("NO_OFFER", "no such offer is held here");
      return;
    }
    if (key !== null && !equalBytes(hello.proof, proofOf("receiver", key, this.#nonce, hello.nonce))) {
      this.#refuse("BAD_PROOF", "the proof is wrong");
      return;
    }
    const why = onlyNixlRefusal({ receiver: hello.nixl, sender: context.nixl });
    if (why !== null) {
      this.#refuse("NO_PATH", why);
      return;
    }
    this.#number = hello.connection;
    // Meant for an earlier start of this side, it learns of this one by WELCOME. What it names says nothing about our offers, and the
    // connection that leads to us stays the one that is used (I6).
    const isForUs = hello.se === context.epoch;
    if (isForUs && !context.receivers.welcome(hello.re, this)) {
      this.#channel.close("an older connection of this receiver");
      return;
    }
    this.#receiver = hello.re;
    this.#limit.clear();
    this.#channel.trust();
    this.#owner.proven();
    this.#instance = hello.instance;
    this.#isMember = this.#local || hello.key === "secret";
    this.#sameLayout = hello.layoutDigest === context.layoutDigest;
    if (isForUs) context.offers.hello(hello.re, hello.live);
    this.send({
      type: "WELCOME",
      se: context.epoch,
      re: hello.re,
      instance: context.instance,
      layout: context.layout,
      descriptor: this.#sameLayout ? context.plane.descriptor : new Uint8Array(0),
      limits: context.limits,
      proof: key === null ? new Uint8Array(0) : proofOf("sender", key, this.#nonce, hello.nonce),
      ...(context.nixl && { nixl: context.nixl }),
    });
  }

  /** What must key the proof: the cluster secret, or the token of a live offer. */
  #keyOf(hello: FrameOf<"HELLO">): string | undefined {
    const { secret, offers } = this.#context;
    return hello.key === "secret" ? secret : offers.tokenOf(hello.key as RequestId);
  }

  #error(code: FrameOf<"ERROR">["code"], text: string): void {
    this.send({ type: "ERROR", code, text: text.slice(0, 1024) });
  }

  #refuse(code: FrameOf<"ERROR">["code"], text: string): void {
    this.#error(code, text);
    this.#channel.end(text);
  }
}
