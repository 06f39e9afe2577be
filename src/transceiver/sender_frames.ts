import type { Epoch, TransferId } from "../ids.ts";
import type { LinkSurroundings, LinkUser } from "./link_user.ts";
import { decodeSenderFrame, type FrameOf, type ReceiverFrame, type SenderFrame } from "./protocol.ts";

/** What the frames of a sender make their link do. */
export interface FrameSink {
  /** The sender's and this side's, as each frame carries them. */
  readonly epochs: { readonly se: Epoch; readonly re: Epoch };
  write(frame: ReceiverFrame): void;
  /** The sender broke the protocol: nothing more of this connection can be believed. */
  broken(why: string): void;
  /** Another process answers at this address now, of epoch `now`. */
  stale(now: string): void;
  renewed(frame: FrameOf<"RENEWED">): void;
}

/** Reads what a sender writes after the handshake: each frame of its present epoch goes to the attempt that it names. */
export class SenderFrames {
  readonly #around: Pick<LinkSurroundings, "countDropped">;
  readonly #sink: FrameSink;
  readonly #byTransfer: ReadonlyMap<TransferId, LinkUser>;

  constructor(
    around: Pick<LinkSurroundings, "countDropped">,
    byTransfer: ReadonlyMap<TransferId, LinkUser>,
    sink: FrameSink,
  ) {
    this.#around = around;
    this.#byTransfer = byTransfer;
    this.#sink = sink;
  }

  read(bytes: Uint8Array): void {
    const decoded = decodeSenderFrame(bytes);
    if (decoded.ok) {
      this.#take(decoded.frame);
      return;
    }
    const code = decoded.unknown ? "UNKNOWN_TYPE" : "PROTOCOL";
    this.#sink.write({ type: "ERROR", code, text: decoded.why.slice(0, 1024) });
    if (!decoded.unknown) this.#sink.broken(decoded.why);
  }

  #take(frame: SenderFrame): void {
    if (frame.type === "ERROR") {
      this.#around.countDropped(`ERROR ${frame.code}`);
      return;
    }
    if (frame.type === "CHALLENGE" || frame.type === "WELCOME") {
      this.#sink.broken(`${frame.type} after the handshake`);
      return;
    }
    const { se, re } = this.#sink.epochs;
    if (frame.type === "STALE_EPOCH") {
      if (frame.se !== se) this.#sink.stale(frame.se);
      return;
    }
    if (frame.se !== se || frame.re !== re) {
      this.#around.countDropped("frame of another epoch");
      return;
    }
    switch (frame.type) {
      case "GRANT":
        this.#userOf(frame)?.granted(frame);
        break;
      case "REFUSE":
        this.#userOf(frame)?.refused(frame);
        break;
      case "READY":
        this.#userOf(frame)?.ready(frame);
        break;
      case "FINISHED":
        this.#userOf(frame)?.finished(frame);
        break;
      case "ABORT":
        this.#userOf(frame)?.aborted(frame);
        break;
      case "RENEWED":
        this.#sink.renewed(frame);
        break;
      case "PING":
        this.#sink.write({ type: "PONG", se, re, n: frame.n });
        break;
      case "PONG":
        break;
    }
  }

  #userOf(frame: { readonly type: string; readonly transferId: TransferId }): LinkUser | undefined {
    const user = this.#byTransfer.get(frame.transferId);
    if (user === undefined) this.#around.countDropped(`${frame.type} of no attempt`);
    return user;
  }
}
