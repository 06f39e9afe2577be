import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { decodeState, encodeState } from "../../../src/transceiver/opaque_state.ts";

type End = "near" | "far";
interface Pair {
  readonly near: Socket;
  readonly far: Socket;
}

/** Stands between a receiver (near) and a sender's control port (far); cuts connections when a test says so. */
export class Wire {
  readonly #server: Server;
  readonly #pairs = new Set<Pair>();
  readonly #seen: ((bytes: Buffer) => void) | undefined;
  #endpoint = "";
  connections = 0;
  /** A sender's end that closes is not told to receivers, as by a proxy that notices late. */
  hidesEnds = false;
  /** The first bytes that hold this word are lost, and all connections with them. */
  cutAt: string | null = null;
  /** After that cut new connections get no further than here, until they are let through. */
  holdsAfterCut = false;
  #held: (() => void)[] | null = null;

  /** @param seen is given what receivers write */
  constructor(target: string, seen?: (bytes: Buffer) => void) {
    this.#seen = seen;
    const { hostname, port } = new URL(target);
    this.#server = createServer((near) => {
      this.connections++;
      const join = (): void => {
        const pair = { near, far: connect(Number(port), hostname) };
        this.#pairs.add(pair);
        this.#join(pair, "near", "far");
        this.#join(pair, "far", "near");
      };
      near.on("error", () => {});
      if (this.#held === null) join();
      else this.#held.push(join);
    });
  }

  async open(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    this.#endpoint = `tcp://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
    return this.#endpoint;
  }

  /** The same offer, to be fetched through this wire. */
  through(state: string): string {
    const offer = decodeState(state);
    const ranks = offer.ranks.map((rank) => ({ ...rank, tcp: this.#endpoint, unix: null }));
    return encodeState({ ...offer, ranks });
  }

  /** Both ends see their connections closed. */
  cut(): void {
    for (const { near, far } of this.#pairs) {
      near.destroy();
      far.destroy();
    }
  }

  letThrough(): void {
    const held = this.#held ?? [];
    this.#held = null;
    for (const join of held) join();
  }

  /** Only one end sees it; to the other its connections are silent until it closes them itself. */
  cutAtOneEnd(end: End): void {
    for (const pair of this.#pairs) {
      const [closed, silent] = end === "near" ? [pair.near, pair.far] : [pair.far, pair.near];
      this.#pairs.delete(pair);
      closed.removeAllListeners("close").on("close", () => {});
      silent.removeAllListeners("data").resume();
      closed.destroy();
    }
  }

  close(): void {
    this.cut();
    this.#server.close();
  }

  #join(pair: Pair, from: End, to: End): void {
    const source = pair[from];
    const target = pair[to];
    source.on("error", () => {});
    source.on("close", () => {
      if (from === "far" && this.hidesEnds) return;
      this.#pairs.delete(pair);
      target.destroy();
    });
    source.on("data", (bytes: Buffer) => {
      if (from === "near") this.#seen?.(bytes);
      if (this.cutAt !== null && bytes.includes(this.cutAt)) {
        this.cutAt = null;
        if (this.holdsAfterCut) this.#held = [];
        this.cut();
      } else if (!target.destroyed) {
        target.write(bytes);
      }
    });
  }
}
