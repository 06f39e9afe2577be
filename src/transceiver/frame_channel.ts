import type { Socket } from "node:net";
import { BoundedTurns } from "./bounded_turns.ts";
import { encodeFrame, FRAME_LIMIT, type Frame } from "./protocol.ts";

/** Bytes that may wait for a peer that does not read; then the connection is given up. Reading never waits for them. */
const WRITE_LIMIT = 16 << 20;
const PREFIX = 4;

export interface ChannelListener {
  /** One frame without its prefix; the bytes are the listener's. */
  frame(bytes: Uint8Array): void;
  /** Once. `why` is for people. */
  closed(why: string): void;
}

/** Cuts a byte stream into frames: a big-endian uint32 length, then that many bytes. */
export class FrameSplitter {
  #chunks: Uint8Array[] = [];
  #buffered = 0;
  /** Of the frame that is being collected; 0: its prefix is not complete. */
  #wanted = 0;

  /** Bytes that wait for the rest of their frame. */
  get buffered(): number {
    return this.#buffered;
  }

  /** @returns the frames that are complete now, or why the stream can't be read on */
  push(chunk: Uint8Array, limit: number): readonly Uint8Array[] | string {
    this.#chunks.push(chunk);
    this.#buffered += chunk.length;
    const frames: Uint8Array[] = [];
    for (;;) {
      if (this.#wanted === 0) {
        if (this.#buffered < PREFIX) return frames;
        const prefix = this.#take(PREFIX);
        const length = new DataView(prefix.buffer, prefix.byteOffset).getUint32(0);
        if (length === 0 || length > limit) return `a frame of ${length} bytes, the limit is ${limit}`;
        this.#wanted = length;
      }
      if (this.#buffered < this.#wanted) return frames;
      frames.push(this.#take(this.#wanted));
      this.#wanted = 0;
    }
  }

  #take(count: number): Uint8Array {
    this.#buffered -= count;
    const first = this.#chunks[0];
    if (first !== undefined && first.length >= count) {
      if (first.length === count) this.#chunks.shift();
      else this.#chunks[0] = first.subarray(count);
      return first.subarray(0, count);
    }
    const taken = new Uint8Array(count);
    let filled = 0;
    let used = 0;
    for (const chunk of this.#chunks) {
      const part = chunk.subarray(0, count - filled);
      taken.set(part, filled);
      filled += part.length;
      if (part.length < chunk.length) {
        this.#chunks[used] = chunk.subarray(part.length);
        break;
      }
      used++;
      if (filled === count) break;
    }
    this.#chunks.splice(0, used);
    return taken;
  }
}

/** Frames over one socket, both ways. Owns the socket; never keeps Node alive (the data plane does that while there is work). */
export class FrameChannel {
  readonly #socket: Socket;
  readonly #listener: ChannelListener;
  readonly #splitter = new FrameSplitter();
  readonly #frames: BoundedTurns<Uint8Array>;
  #closed = false;
  /** Why the socket gives no more, while frames that have come before still wait for their turn. */
  #ended: string | null = null;
  /** Frames of this turn of the event loop: they leave together, after whoever waits for what they are about has gone on. */
  #outgoing: Buffer[] = [];
  #outgoingBytes = 0;
  #received = 0;
  /** Largest frame, and bytes in all, that the peer may send now; raised once it is proven. */
  #frameLimit: number;
  #byteLimit: number;

  /** @param nowMs the clock of the turns in which frames are handled */
  constructor(
    socket: Socket,
    listener: ChannelListener,
    nowMs: () => number,
    limits: { readonly frame: number; readonly bytes: number } = {
      frame: FRAME_LIMIT,
      bytes: Number.POSITIVE_INFINITY,
    },
  ) {
    this.#socket = socket;
    this.#listener = listener;
    this.#frames = new BoundedTurns((frame) => {
      if (!this.#closed) this.#listener.frame(frame);
    }, nowMs);
    this.#frameLimit = limits.frame;
    this.#byteLimit = limits.bytes;
    socket.setNoDelay(true);
    socket.unref();
    socket.on("data", (chunk: Uint8Array) => this.#read(chunk));
    socket.on("error", (error) => this.#end(error.message));
    socket.on("close", () => this.#end("the peer closed the connection"));
    socket.on("end", () => this.#end("the peer closed the connection"));
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Of its socket; null when it has none any more. Node has no public name for it. */
  get fileDescriptor(): number | null {
    const { _handle: handle } = this.#socket as Socket & { readonly _handle?: { readonly fd?: number } | null };
    return handle?.fd !== undefined && handle.fd >= 0 ? handle.fd : null;
  }

  /** The peer is proven: it may send frames up to the protocol's limit. */
  trust(): void {
    this.#frameLimit = FRAME_LIMIT;
    this.#byteLimit = Number.POSITIVE_INFINITY;
  }

  /** False when nobody will read it. */
  send(frame: Frame): boolean {
    if (this.#closed) return false;
    const bytes = encodeFrame(frame, PREFIX);
    bytes.writeUInt32BE(bytes.length - PREFIX);
    if (this.#outgoing.push(bytes) === 1) queueMicrotask(() => this.#flush());
    this.#outgoingBytes += bytes.length;
    const waiting = this.#socket.writableLength + this.#outgoingBytes;
    if (waiting > WRITE_LIMIT) {
      this.close(`the peer does not read: ${waiting} bytes wait for it`);
      return false;
    }
    return true;
  }

  #flush(): void {
    const [first] = this.#outgoing;
    if (first === undefined) return;
    const bytes = this.#outgoing.length === 1 ? first : Buffer.concat(this.#outgoing);
    this.#outgoing = [];
    this.#outgoingBytes = 0;
    if (!this.#socket.destroyed) this.#socket.write(bytes);
  }

  /** Frames that have arrived are still handled. */
  #end(why: string): void {
    if (this.#frames.isIdle) this.close(why);
    else if (this.#ended === null) {
      this.#ended = why;
      void this.#frames.idle().then(() => this.close(why));
    }
  }

  /** Idempotent. */
  close(why: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#flush();
    this.#socket.destroy();
    this.#listener.closed(why);
  }

  /**
   * What was written goes out first.
   * @param lingerMs how long the peer may take to read it all and to close: a peer that writes to a socket which is gone already gets an
   * error, and with it loses what it has not read
   */
  end(why: string, lingerMs = 0): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#flush();
    const socket = this.#socket;
    if (lingerMs === 0) {
      socket.end(() => socket.destroy());
    } else {
      const limit = setTimeout(() => socket.destroy(), lingerMs).unref();
      socket.once("close", () => clearTimeout(limit));
      socket.once("end", () => socket.destroy());
      socket.end();
      // What still comes is read, and dropped.
      socket.resume();
    }
    this.#listener.closed(why);
  }

  #read(chunk: Uint8Array): void {
    if (this.#closed) return;
    this.#received += chunk.length;
    if (this.#received > this.#byteLimit) {
      this.close(`more than ${this.#byteLimit} bytes before its proof`);
      return;
    }
    const frames = this.#splitter.push(chunk, this.#frameLimit);
    if (typeof frames === "string") {
      this.close(frames);
      return;
    }
    this.#frames.push(frames);
    if (this.#frames.isIdle || this.#closed) return;
    // The rest has its turn later; until then the peer waits, as it does for any slow reader.
    this.#socket.pause();
    void this.#frames.idle().then(() => {
      if (!this.#closed) this.#socket.resume();
    });
  }
}
