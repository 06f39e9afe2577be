import { KvError } from "../errors.ts";
import type { TransferId } from "../ids.ts";
import { type Layout, layoutDifferences } from "../layout.ts";
import type { PlanePeer } from "./data_plane.ts";
import type { DialFailure, DialTarget } from "./dial.ts";
import type { ChannelListener, FrameChannel } from "./frame_channel.ts";
import { LinkLiveness } from "./link_liveness.ts";
import type { LinkSurroundings, LinkUser, PullFields, Untold } from "./link_user.ts";
import { nixlRefusal } from "./nixl_pairing.ts";
import { equalBytes } from "./proof.ts";
import { type FrameOf, IDS_LIMIT, type ReceiverFrame } from "./protocol.ts";
import { Renewals } from "./renewals.ts";
import { type FrameSink, SenderFrames } from "./sender_frames.ts";

/** Tries to connect that each user gets, and the pause before each but the first. */
const DIAL_PAUSES_MS = [0, 50, 200];
/** For the sender to read the last DONE. */
const LINGER_MS = 1_000;
/** Copying a large pool's page tables takes seconds; a stopped sender is noticed by its silence long before. */
const REACH_TIMEOUT_MS = 60_000;

type LinkState = "down" | "dialling" | "reaching" | "up" | "gone";

/**
 * The one connection to one epoch of one sender, its mapping, and the renewals of all pulls over it. Dials while there is something to
 * pull, and again after a loss.
 */
export class PeerLink implements ChannelListener {
  readonly target: DialTarget;
  readonly #around: LinkSurroundings;
  readonly #epochs: FrameSink["epochs"];
  readonly #users = new Set<LinkUser>();
  /** What a user that came while a dial ran has not seen of its tries: they may have been made while there was no network yet. */
  readonly #missed = new Map<LinkUser, number>();
  /** Of the dial that runs, that have failed. */
  #tries = 0;
  readonly #byTransfer = new Map<TransferId, LinkUser>();
  #untold: Untold[] = [];
  #state: LinkState = "down";
  #channel: FrameChannel | null = null;
  #peer: PlanePeer | null = null;
  #senderLayout: Layout | null = null;
  #mapped = false;
  /** That was reached, or tried to. */
  #descriptor: Uint8Array = new Uint8Array(0);
  #path = "none";
  #leaseMs: number;
  readonly #renewals: Renewals;
  readonly #liveness: LinkLiveness;
  readonly #frames: SenderFrames;
  #pings = 0;
  /** Why this epoch of the sender can never be used again. */
  #end: { readonly error: KvError; readonly kind: "stale" | "dead" | "closed" } | null = null;

  constructor(target: DialTarget, around: LinkSurroundings) {
    this.target = target;
    this.#around = around;
    this.#epochs = { se: target.epoch, re: around.identity.epoch };
    this.#leaseMs = around.ownLeaseMs;
    this.#renewals = new Renewals(around);
    this.#liveness = new LinkLiveness(
      around.plane,
      () => this.#leaseMs,
      (now, silentMs) => this.#beat(now, silentMs),
    );
    this.#frames = new SenderFrames(around, this.#byTransfer, {
      epochs: this.#epochs,
      write: (frame) => void this.#send(frame),
      broken: (why) => this.#channel?.close(`it broke the protocol: ${why}`),
      stale: (now) => this.#stale(now),
      renewed: (frame) => {
        if (this.#renewals.answered(frame, this.#byTransfer)) this.renewNow();
      },
    });
  }

  get up(): boolean {
    return this.#state === "up";
  }

  /** By which the sender's blocks are read. */
  get path(): string {
    return this.#path;
  }

  /** Of the sender's blocks. */
  get tokensPerBlock(): number {
    return (this.#senderLayout ?? this.#around.layout).tokensPerBlock;
  }

  get peer(): PlanePeer | null {
    return this.#peer;
  }

  join(user: LinkUser): void {
    this.#users.add(user);
    this.#liveness.start();
    if (this.#end !== null) this.#tellEnd(user);
    else if (this.#state === "up") user.linkUp();
    else if (this.#state === "down") void this.#dial();
    else if (this.#state === "dialling") this.#missed.set(user, this.#tries);
  }

  leave(user: LinkUser): void {
    this.#users.delete(user);
    this.#missed.delete(user);
    for (const [id, owner] of this.#byTransfer) if (owner === user) this.#byTransfer.delete(id);
    this.#rest();
  }

  /** Writes a PULL; its answers go to `user`. @returns the clock before the write: the base of the view */
  pull(user: LinkUser, frame: PullFields): number {
    const writtenMs = this.#around.plane.nowMs();
    this.#byTransfer.set(frame.transferId, user);
    this.#send({ type: "PULL", ...this.#epochs, ...frame });
    this.#around.plane.expectRead();
    return writtenMs;
  }

  /** The clock before RENEW `seq` was written, if that is the last one. */
  renewalMs(seq: number): number | undefined {
    return this.#renewals.writtenMs(seq);
  }

  /** Tells the sender that this attempt reads no more; kept for the next connection when there is none now. */
  done(offer: LinkUser["offer"], transferId: TransferId, status: FrameOf<"DONE">["status"], bytes: number): void {
    const frame: FrameOf<"DONE"> = { type: "DONE", ...this.#epochs, transferId, status, bytes };
    // The sender's lease is over then.
    this.#tell({ transferId, frames: [frame], offer, untilMs: this.#around.plane.nowMs() + this.#leaseMs });
  }

  /** Tells the sender that nobody on this side wants an offer that was never asked for: a PULL, and its DONE behind it. */
  decline(offer: LinkUser["offer"], pull: PullFields, status: FrameOf<"DONE">["status"]): void {
    const { transferId } = pull;
    const head = this.#epochs;
    const frames: ReceiverFrame[] = [
      { type: "PULL", ...head, ...pull },
      { type: "DONE", ...head, transferId, status, bytes: 0 },
    ];
    // The offer may live longer than any lease: it is told as long as the dialling goes on.
    this.#tell({ transferId, frames, offer, untilMs: Number.POSITIVE_INFINITY });
  }

  /** Now, or over the next connection when there is none. */
  #tell(word: Untold): void {
    if (this.#state === "up" && word.frames.every((frame) => this.#send(frame))) return;
    if (this.#end !== null) return;
    this.#untold.push(word);
    if (this.#state === "down") void this.#dial();
  }

  /** Asks now whether the leases are still held; the answer decides about late reads. */
  renewNow(): void {
    if (this.#state !== "up") return;
    const renewal = this.#renewals.next(this.#users);
    if (renewal !== null) this.#send({ type: "RENEW", ...this.#epochs, ...renewal });
  }

  close(): void {
    this.#finish("closed", new KvError("CLOSED", { what: "this transceiver" }));
  }

  // --- frames -------------------------------------------------------------------------------------------------------------

  frame(bytes: Uint8Array): void {
    this.#liveness.heard();
    this.#frames.read(bytes);
  }

  closed(why: string): void {
    this.#lost(why);
  }

  // --- connection ---------------------------------------------------------------------------------------------------------

  async #dial(): Promise<void> {
    this.#state = "dialling";
    this.#missed.clear();
    let failure: DialFailure | null = null;
    for (this.#tries = 0; this.#triesLeft; ) {
      const pause = DIAL_PAUSES_MS[Math.min(this.#tries, DIAL_PAUSES_MS.length - 1)] ?? 0;
      if (pause > 0) await this.#pause(pause);
      if (!this.#wanted || this.#end !== null) break;
      const asking = this.#asking();
      failure = await this.#around.dial({
        plane: this.#around.plane,
        identity: this.#around.identity,
        target: this.target,
        timeoutMs: Math.max(1000, this.#leaseMs / 2),
        connection: this.#around.nextConnection(),
        live: this.#live(),
        offer: asking?.offer,
        welcomed: (channel, welcome) => this.#welcomed(channel, welcome),
      });
      // Welcomed, or lost again already: then another dial runs.
      if (failure === null) return;
      // Dead, stale or closed meanwhile: its users have been told, and some go on without it.
      if (this.#end !== null) return;
      if (failure.refused) {
        // The proof of this one offer was refused; others may know better.
        const refused = asking?.user;
        if (refused === undefined) this.#untold = [];
        // It may have ended while the handshake ran.
        else if (this.#users.has(refused)) refused.linkFailed(failure.error);
        if (!this.#wanted) break;
        // Whoever is left has not been refused, and has all tries before it.
        if (refused === undefined || !this.#users.has(refused)) continue;
      }
      this.#tries++;
      for (const user of this.#tired) user.linkFailed(failure.error);
    }
    if (this.#end !== null) return;
    this.#state = "down";
    if (failure !== null) {
      this.#untold = [];
      for (const user of [...this.#users]) user.linkFailed(failure.error);
    }
    this.#rest();
  }

  /** Users that have had all their tries, once others have some left. */
  get #tired(): readonly LinkUser[] {
    if (!this.#triesLeft) return [];
    return [...this.#users].filter((user) => this.#tries - (this.#missed.get(user) ?? 0) >= DIAL_PAUSES_MS.length);
  }

  get #triesLeft(): boolean {
    const last = Math.max(0, ...this.#missed.values());
    return this.#tries - last < DIAL_PAUSES_MS.length;
  }

  get #wanted(): boolean {
    return this.#users.size > 0 || this.#untold.length > 0;
  }

  #asking(): { readonly user: LinkUser | undefined; readonly offer: LinkUser["offer"] } | undefined {
    for (const user of this.#users) return { user, offer: user.offer };
    const untold = this.#untold[0];
    return untold === undefined ? undefined : { user: undefined, offer: untold.offer };
  }

  #live(): TransferId[] {
    const live = [...this.#users].flatMap((user) => user.live ?? []);
    return [...live, ...this.#untold.map(({ transferId }) => transferId)].slice(0, IDS_LIMIT);
  }

  #pause(ms: number): Promise<void> {
    const { plane } = this.#around;
    return new Promise((resolve) => {
      plane.timer(plane.nowMs() + ms, resolve);
    });
  }

  #welcomed(channel: FrameChannel, welcome: FrameOf<"WELCOME">): ChannelListener {
    const { layout } = this.#around;
    this.#channel = channel;
    this.#liveness.heard();
    if (this.#end !== null) {
      channel.close("this side has closed");
    } else if (welcome.se !== this.target.epoch) {
      this.#stale(welcome.se);
    } else {
      const fields = layoutDifferences(layout, welcome.layout);
      if (fields !== "") {
        this.#failAll(new KvError("LAYOUT_MISMATCH", { peer: this.target.name, fields }));
      } else {
        this.#leaseMs = welcome.limits.leaseMs;
        this.#senderLayout = welcome.layout;
        this.#around.welcomed(welcome.limits);
        // It may have another NIXL agent than before.
        if (!this.#mapped || !equalBytes(this.#descriptor, welcome.descriptor)) this.#reach(welcome);
        this.#peer?.connected(channel.fileDescriptor);
        if (this.#mapped) this.#isUp();
      }
    }
    return this;
  }

  #reach({ descriptor, nixl: sender }: FrameOf<"WELCOME">): void {
    this.#state = "reaching";
    this.#mapped = false;
    this.#descriptor = descriptor;
    this.#peer?.release();
    this.#peer = this.#around.plane.reach(descriptor, REACH_TIMEOUT_MS, {
      reached: (why, path) => {
        if (why === null) {
          this.#mapped = true;
          this.#path = path;
          if (this.#state === "reaching") this.#isUp();
        } else {
          this.#peer = null;
          const nixl = nixlRefusal({ receiver: this.#around.identity.nixl, sender });
          this.#failAll(
            new KvError("NO_PATH", { peer: this.target.name, why: nixl === null ? why : `${why}; ${nixl}` }),
          );
        }
      },
      dead: () => {
        const { name, epoch } = this.target;
        this.#finish("dead", new KvError("PEER_LOST", { peer: name, epoch, ms: this.#liveness.unheardMs }));
      },
    });
  }

  #isUp(): void {
    this.#state = "up";
    const now = this.#around.plane.nowMs();
    for (const { frames, untilMs } of this.#untold.splice(0)) {
      if (untilMs > now) for (const frame of frames) this.#send(frame);
    }
    for (const user of [...this.#users]) if (this.#users.has(user)) user.linkUp();
    this.renewNow();
    this.#rest();
  }

  /** The connection is gone; the mapping and the leases are not. */
  #lost(why: string): void {
    this.#channel = null;
    this.#peer?.connected(null);
    this.#renewals.cut();
    if (this.#end !== null) return;
    this.#state = "down";
    const { name, epoch } = this.target;
    const ms = this.#liveness.unheardMs;
    const error = new KvError("PEER_LOST", { peer: name, epoch, ms }, { cause: new Error(why) });
    if (!this.#mapped) {
      this.#peer?.release();
      this.#peer = null;
    }
    for (const user of [...this.#users]) if (this.#users.has(user)) user.linkLost(error);
    if (this.#state === "down" && this.#wanted) void this.#dial();
    else this.#rest();
  }

  /** Nothing can be pulled from this sender as it is; a later pull may dial again. */
  #failAll(error: KvError): void {
    for (const user of [...this.#users]) user.linkFailed(error);
    this.#untold = [];
    this.#channel?.close(error.message);
  }

  #stale(now: string): void {
    const { name, epoch } = this.target;
    this.#finish("stale", new KvError("STALE_EPOCH", { peer: `${name} (now epoch ${now})`, epoch }));
  }

  #finish(kind: "stale" | "dead" | "closed", error: KvError): void {
    if (this.#end !== null) return;
    this.#end = { kind, error };
    this.#state = "gone";
    this.#untold = [];
    for (const user of [...this.#users]) if (this.#users.has(user)) this.#tellEnd(user);
    // What was written, a DONE perhaps, still goes out.
    this.#channel?.end(error.message, LINGER_MS);
    this.#rest();
  }

  #tellEnd(user: LinkUser): void {
    if (this.#end === null) return;
    const { kind, error } = this.#end;
    if (kind === "dead") user.senderDead(error);
    else if (kind === "stale") user.staleEpoch(error);
    else user.linkFailed(error);
  }

  /** An idle link stays connected, for the next pull; one without connection or future lets its mapping go. */
  #rest(): void {
    if (this.#users.size > 0) return;
    this.#liveness.stop();
    if (this.#untold.length > 0 || (this.#state !== "down" && this.#state !== "gone")) return;
    this.#peer?.release();
    this.#peer = null;
    this.#mapped = false;
    this.#around.unused(this);
  }

  // --- liveness -----------------------------------------------------------------------------------------------------------

  #beat(now: number, silentMs: number | null): void {
    for (const user of [...this.#users]) if (this.#users.has(user)) user.tick(now);
    if (this.#channel === null) return;
    if (silentMs !== null) {
      this.#channel.close(`silent for ${Math.round(silentMs)} ms`);
      return;
    }
    this.renewNow();
    if (!this.#renewals.isOutstanding) this.#send({ type: "PING", ...this.#epochs, n: ++this.#pings });
  }

  #send(frame: ReceiverFrame): boolean {
    return this.#channel?.send(frame) ?? false;
  }
}
