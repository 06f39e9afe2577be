import { expect } from "vitest";
import type { Placement } from "../../../src/kv/placement.ts";
import { type Shape, sizesOf } from "./instance_shapes.ts";
import type { Peer } from "./peer_process.ts";

export const BLOCKS = 40;
/** Such tokens as prefill has computed when a transfer that is streamed begins. */
const FIRST_CHUNK = 21;

/** A pool in memfds of another process. `memory` names them: who opens the same again has the same bytes. */
export interface AdoptedPool {
  readonly memory: string;
  readonly files: number;
  /** Of each file. */
  readonly bytes: number;
  readonly regions: readonly { readonly file: number; readonly offset: number; readonly bytes: number }[];
  readonly blocks: number;
  readonly placement: Placement;
  /** As KvBlockTables has them, and the ids of each one's blocks for any sequence. */
  readonly tables?: Readonly<Record<string, readonly string[]>>;
  readonly ids?: Readonly<Record<string, readonly number[]>>;
}

/** Tokens after which none that is older is needed, of each table where there are several; null: all are. */
export type Keeps = number | null | Readonly<Record<string, number | null>>;

interface Received {
  readonly path: string;
  readonly bytes: number;
  readonly wrong: string | null;
}

/** One of the instances in a process of their own (placed_entry.mjs). */
export class PlacedPeer {
  readonly name: string;
  readonly peer: Peer;
  readonly #at: string;
  /** Of a sequence's blocks, by table: of an engine that gives them out itself. */
  readonly #ids: Readonly<Record<string, readonly number[]>> | undefined;

  private constructor(peer: Peer, name: string, at: string, ids?: Readonly<Record<string, readonly number[]>>) {
    this.peer = peer;
    this.name = name;
    this.#at = at;
    this.#ids = ids;
  }

  static async spread(peer: Peer, layout: object, shape: Shape, socketDir: string): Promise<PlacedPeer> {
    const [, , tokensPerBlock, order] = shape;
    const at = `${++opened}`;
    const pool = { memory: "host", blocks: BLOCKS, order };
    const options = { layout: { ...layout, tokensPerBlock }, sizes: sizesOf(shape), pool, socketDir, verify: "full" };
    await peer.call("open", { at, options });
    return new PlacedPeer(peer, String(shape), at);
  }

  static async adopted(
    peer: Peer,
    layout: object,
    { blocks, placement, tables, ids, ...adopted }: AdoptedPool,
    socketDir: string,
  ): Promise<PlacedPeer> {
    const at = `${++opened}`;
    const options = { layout, pool: { blocks, placement }, socketDir, verify: "full", tables };
    await peer.call("open", { at, options, adopted });
    return new PlacedPeer(peer, "adopted", at, ids);
  }

  send(options: { number: number; tokens: number; ready: number; keeps: Keeps }): Promise<{ state: string }> {
    return this.peer.call("send", { at: this.#at, ids: this.#ids, ...options });
  }

  async receive(options: { number: number; state: string; tokens: number; skip: number; keeps: Keeps }): Promise<void> {
    await this.peer.call("receive", { at: this.#at, ids: this.#ids, ...options });
  }

  received = (number: number): Promise<Received> => this.peer.call("received", { number });
  sent = (number: number): Promise<{ path: string }> => this.peer.call("sent", { number });

  /** Nothing is held, and nothing has failed. */
  async expectIdle(): Promise<void> {
    expect(await this.peer.call("held", { at: this.#at }), this.name).toEqual([]);
  }

  close = (): Promise<void> => this.peer.call("close", { at: this.#at });
}
let opened = 0;

let sequences = 0;
/** Tokens of a request, and how many are here already: none, whole blocks, so many that the last lies inside a block. */
const requests: readonly (readonly [tokens: number, skip: number])[] = [
  [61, 0],
  [64, 48],
  [30, 13],
];

/** Moves sequences with reuse and without, streamed while prefill goes on and whole; every byte that should arrive has, and no other. */
export async function moveAll(
  context: PlacedPeer,
  generation: PlacedPeer,
  { keeps = null, path = "shared_memory" }: { readonly keeps?: Keeps; readonly path?: string } = {},
): Promise<void> {
  for (const [tokens, skip] of requests) {
    for (const ready of [FIRST_CHUNK, tokens]) {
      const number = ++sequences;
      const { state } = await context.send({ number, tokens, ready, keeps });
      await generation.receive({ number, state, tokens, skip, keeps });
      const ended = generation.received(number);
      if (ready < tokens) {
        // Or it has failed.
        if (ready > skip) await Promise.race([generation.peer.arrived(number, ready), ended]);
        await context.peer.call("ready", { number, tokens });
      }
      const what = `${context.name} to ${generation.name}, ${tokens} tokens, ${ready} at first, ${skip} here already`;
      const moved = await ended;
      expect(moved, what).toMatchObject({ wrong: null, path });
      await context.sent(number);
    }
  }
}
