import { connect as connectPlain, type Socket } from "node:net";
import { dirname } from "node:path";
import { connect as connectTls } from "node:tls";
import { KvError } from "../errors.ts";
import type { CapabilityToken, Epoch, RequestId, TransferId } from "../ids.ts";
import type { DataPlane } from "./data_plane.ts";
import { type ChannelListener, FrameChannel } from "./frame_channel.ts";
import type { OwnNixl } from "./nixl_pairing.ts";
import { equalBytes, newNonce, proofOf } from "./proof.ts";
import { decodeSenderFrame, type FrameOf, PROTOCOL_VERSION } from "./protocol.ts";

/** Who dials: the receiver's side of HELLO. */
export interface DialIdentity {
  readonly epoch: Epoch;
  readonly instance: string;
  readonly rank: number;
  readonly layoutDigest: string;
  /** KVT_AUTH_TOKEN. */
  readonly secret: string | undefined;
  /** CA certificates in PEM for `tls://` endpoints; undefined: the system's. */
  readonly ca: string | undefined;
  /** Only sockets in this directory, which is ours alone, are dialled and trusted without proof. */
  readonly socketDir: string | undefined;
  readonly nixl?: OwnNixl | undefined;
}

export interface DialTarget {
  /** For messages. */
  readonly name: string;
  readonly epoch: Epoch;
  /** `tcp://host:port` or `tls://host:port`. */
  readonly tcp: string;
  readonly unix: string | null;
}

export interface DialRequest {
  readonly plane: DataPlane;
  readonly identity: DialIdentity;
  readonly target: DialTarget;
  /** For connecting and for the handshake, each. */
  readonly timeoutMs: number;
  readonly connection: number;
  readonly live: readonly TransferId[];
  /** A live offer of the target, whose token proves us where no secret is shared; one without token needs the secret. */
  readonly offer: { readonly requestId: RequestId; readonly token: CapabilityToken | null } | undefined;
  /** Takes the channel over with the WELCOME. */
  welcomed(channel: FrameChannel, welcome: FrameOf<"WELCOME">): ChannelListener;
}

/** Why a dial ended without WELCOME. `refused`: the peer said no to this offer's proof, so asking again is useless. */
export interface DialFailure {
  readonly error: KvError;
  readonly refused: boolean;
}

export type Way = "unix" | "tcp";

/** Settles with null once welcomed. `dial` over real sockets; a simulation has its own. */
export type Dial = (request: DialRequest) => Promise<DialFailure | null>;

/** Connects over the unix socket if it is reachable, else over TCP, and goes through the handshake; null: welcomed. */
export async function dial(request: DialRequest): Promise<DialFailure | null> {
  const { target, identity } = request;
  let failure: DialFailure | undefined;
  if (target.unix !== null && identity.socketDir !== undefined && dirname(target.unix) === identity.socketDir) {
    const { unix } = target;
    const connected = await connectWith(request, () => connectPlain({ path: unix }), "connect");
    if (connected.socket !== undefined) return await handshake(request, connected.socket, "unix");
    failure = connected.failure;
  }
  const url = URL.canParse(target.tcp) ? new URL(target.tcp) : undefined;
  if (url === undefined || (url.protocol !== "tcp:" && url.protocol !== "tls:")) {
    return failure ?? unreachable(target, `its endpoint ${target.tcp} is no tcp:// or tls:// address`);
  }
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = Number(url.port);
  const secure = url.protocol === "tls:";
  const { ca } = identity;
  const open = (): Socket =>
    secure ? connectTls({ host, port, ...(ca === undefined ? {} : { ca }) }) : connectPlain({ host, port });
  const { socket, failure: failed } = await connectWith(request, open, secure ? "secureConnect" : "connect");
  return socket === undefined ? failed : await handshake(request, socket, "tcp");
}

const unreachable = (target: DialTarget, why: string): DialFailure => ({
  error: new KvError("PEER_UNREACHABLE", { peer: target.name, why }),
  refused: false,
});

type Connected =
  | { readonly socket: Socket; readonly failure?: undefined }
  | { readonly socket?: undefined; readonly failure: DialFailure };

function connectWith(request: DialRequest, open: () => Socket, event: "connect" | "secureConnect"): Promise<Connected> {
  const { plane, target, timeoutMs } = request;
  return new Promise((resolve) => {
    let socket: Socket;
    try {
      socket = open();
    } catch (error) {
      resolve({ failure: unreachable(target, error instanceof Error ? error.message : String(error)) });
      return;
    }
    const fail = (why: string): void => {
      timer.clear();
      socket.destroy();
      resolve({ failure: unreachable(target, why) });
    };
    const timer = plane.timer(plane.nowMs() + timeoutMs, () => fail(`no connection within ${timeoutMs} ms`));
    socket.on("error", (error) => fail(error.message));
    socket.once(event, () => {
      timer.clear();
      socket.removeAllListeners("error");
      resolve({ socket });
    });
  });
}

/** The receiver's side of the handshake over a connected socket. */
export function handshake(request: DialRequest, socket: Socket, way: Way): Promise<DialFailure | null> {
  return new Promise((resolve) => {
    new Handshake(request, socket, way, resolve);
  });
}

/** CHALLENGE, HELLO, WELCOME as the receiver sees them; afterwards passes everything to the link. */
class Handshake implements ChannelListener {
  readonly #request: DialRequest;
  readonly #way: Way;
  readonly #channel: FrameChannel;
  readonly #nonce = newNonce();
  readonly #timer: { clear(): void };
  #resolve: ((failure: DialFailure | null) => void) | undefined;
  #challenge: Uint8Array | undefined;
  #key: string | undefined;
  #link: ChannelListener | undefined;

  constructor(request: DialRequest, socket: Socket, way: Way, resolve: (failure: DialFailure | null) => void) {
    this.#request = request;
    this.#way = way;
    this.#resolve = resolve;
    const { plane, timeoutMs } = request;
    this.#timer = plane.timer(plane.nowMs() + timeoutMs, () =>
      this.#fail(unreachable(request.target, `it did not answer within ${timeoutMs} ms`)),
    );
    this.#channel = new FrameChannel(socket, this, () => plane.nowMs());
  }

  frame(bytes: Uint8Array): void {
    if (this.#link !== undefined) {
      this.#link.frame(bytes);
      return;
    }
    const decoded = decodeSenderFrame(bytes);
    if (!decoded.ok) {
      if (!decoded.unknown) this.#broken(decoded.why);
      return;
    }
    const { frame } = decoded;
    if (frame.type === "CHALLENGE" && this.#challenge === undefined) this.#hello(frame);
    else if (frame.type === "WELCOME" && this.#challenge !== undefined) this.#welcome(frame, this.#challenge);
    else if (frame.type === "ERROR") this.#refused(frame);
    else this.#broken(`${frame.type} during the handshake`);
  }

  closed(why: string): void {
    if (this.#link !== undefined) this.#link.closed(why);
    else this.#fail(unreachable(this.#request.target, why));
  }

  #hello(challenge: FrameOf<"CHALLENGE">): void {
    const { identity, target, offer, connection, live } = this.#request;
    if (challenge.version !== PROTOCOL_VERSION) {
      this.#broken(`it speaks version ${challenge.version} of the protocol, this side ${PROTOCOL_VERSION}`);
      return;
    }
    this.#challenge = challenge.nonce;
    let name = "uid";
    if (this.#way === "tcp") {
      const useSecret = challenge.secret && identity.secret !== undefined;
      const token = offer?.token ?? null;
      name = useSecret || token === null ? "secret" : (offer?.requestId ?? "secret");
      this.#key = useSecret ? identity.secret : (token ?? identity.secret);
    }
    this.#channel.send({
      type: "HELLO",
      se: target.epoch,
      re: identity.epoch,
      version: PROTOCOL_VERSION,
      instance: identity.instance,
      rank: identity.rank,
      layoutDigest: identity.layoutDigest,
      connection,
      live: [...live],
      nonce: this.#nonce,
      key: name,
      proof: this.#key === undefined ? new Uint8Array(0) : proofOf("receiver", this.#key, challenge.nonce, this.#nonce),
      ...(identity.nixl && { nixl: identity.nixl }),
    });
  }

  #welcome(frame: FrameOf<"WELCOME">, challenge: Uint8Array): void {
    const proven =
      this.#key === undefined
        ? this.#way === "unix"
        : equalBytes(frame.proof, proofOf("sender", this.#key, challenge, this.#nonce));
    if (!proven) {
      this.#broken("its proof is wrong: it does not know the key that it asked for");
      return;
    }
    this.#link = this.#request.welcomed(this.#channel, frame);
    this.#settle(null);
  }

  #refused(frame: FrameOf<"ERROR">): void {
    const { target, offer } = this.#request;
    const peer = target.name;
    switch (frame.code) {
      case "NO_OFFER":
        this.#fail({ error: new KvError("NO_OFFER", { peer, request: offer?.requestId ?? "?" }), refused: true });
        break;
      case "BAD_PROOF":
        this.#fail({ error: new KvError("PEER_REFUSED", { peer, why: frame.text }), refused: true });
        break;
      case "NO_PATH":
        this.#fail({ error: new KvError("NO_PATH", { peer, why: frame.text }), refused: true });
        break;
      default:
        this.#fail({ error: new KvError("PROTOCOL", { peer, why: `${frame.code}: ${frame.text}` }), refused: false });
    }
  }

  #broken(why: string): void {
    this.#fail({ error: new KvError("PROTOCOL", { peer: this.#request.target.name, why }), refused: false });
  }

  #fail(failure: DialFailure): void {
    this.#settle(failure);
    this.#channel.close("the handshake failed");
  }

  #settle(outcome: DialFailure | null): void {
    this.#timer.clear();
    this.#resolve?.(outcome);
    this.#resolve = undefined;
  }
}
