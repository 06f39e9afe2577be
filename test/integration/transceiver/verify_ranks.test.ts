import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { DataPlane, ReadListener, ReadRequest } from "../../../src/transceiver/data_plane.ts";
import type { KvInstance } from "../../../src/transceiver/instance.ts";
import { allocateFor, BLOCKS, openShape, type Shape, socketDirOf } from "./instance_shapes.ts";
import { findWrongKv, writeKv } from "./made_up_kv.mjs";

const TOKENS = 61;
const SKIP = 5;
const socketDir = socketDirOf("verify-ranks");

/** Real planes. Of the reads that a test chooses, one byte that arrived is flipped before anything looks at it. */
class FlippingPlanes {
  instance: KvInstance | null = null;
  /** Reads since this was last set to 0, in the order in which they were asked for. */
  reads = 0;
  flips: (read: number) => boolean = () => false;
  #opened = 0;

  readonly around = (real: DataPlane): DataPlane => {
    const rank = this.#opened++;
    return new Proxy(real, {
      get: (plane, name) => {
        if (name === "read") return (request: ReadRequest, to: ReadListener) => this.#read(plane, rank, request, to);
        const member: unknown = Reflect.get(plane, name, plane);
        return typeof member === "function" ? member.bind(plane) : member;
      },
    });
  };

  #read(plane: DataPlane, rank: number, request: ReadRequest, listener: ReadListener) {
    const flips = this.flips(this.reads++);
    const transceiver = this.instance?.ranks[rank];
    if (!flips || transceiver === undefined) return plane.read(request, listener);
    const memory = new Uint8Array(transceiver.memory);
    const before = memory.slice();
    return plane.read(request, {
      quiet: () => listener.quiet(),
      ended: (end) => {
        const arrived = memory.findIndex((byte, at) => byte !== before[at]);
        memory[arrived] = (memory[arrived] ?? 0) ^ 0x10;
        listener.ended(end);
      },
    });
  }
}

/** One read at a time in a rank, so that a read is known by what it changes. */
const open = (shape: Shape, planes?: FlippingPlanes): Promise<KvInstance> =>
  openShape(
    shape,
    { socketDir, verify: "full", maxConcurrentPulls: 1 },
    planes === undefined ? {} : { plane: planes.around },
  );

describe.each([
  [
    [2, 1, 8],
    [1, 1, 16],
  ],
  [
    [1, 1, 16],
    [4, 1, 8],
  ],
  [
    [1, 3, 8],
    [1, 2, 8],
  ],
  [
    [4, 2, 8],
    [2, 3, 16],
  ],
  [
    [8, 1, 8],
    [2, 1, 32],
  ],
] as const satisfies readonly (readonly [Shape, Shape])[])(
  "a byte flipped between ranks, tp, pp, tokens per block %j to %j",
  (from, to) => {
    const planes = new FlippingPlanes();
    let context: KvInstance;
    let generation: KvInstance;
    let number = 0;
    beforeAll(async () => {
      context = await open(from);
      generation = await open(to, planes);
      planes.instance = generation;
    });
    afterAll(async () => {
      await generation.close();
      await context.close();
    });

    /** Moves a sequence; answers the error's code and message, and what is wrong with the KV that arrived. */
    async function move() {
      planes.reads = 0;
      const source = allocateFor(context, TOKENS);
      writeKv(context, ++number, source.ids, 0, TOKENS);
      const sending = context.send({ requestId: requestId(number), tokens: TOKENS, blocks: source });
      source.release();
      using target = allocateFor(generation, TOKENS);
      // What is there already must not hide which bytes a read brings.
      for (const { memory } of generation.ranks) new Uint8Array(memory).fill(0xa5);
      const receiving = generation.receive({ state: sending.state, blocks: target, skipTokens: SKIP });
      const [received] = await Promise.allSettled([receiving.done, sending.done]);
      await receiving.released;
      const error = received.status === "rejected" ? (received.reason as { code: string; message: string }) : null;
      return { error, wrong: findWrongKv(generation, number, target.ids, SKIP, TOKENS) };
    }

    it("is found in each read of each rank, and read again; found again, the transfer fails and nothing stays held", async () => {
      planes.flips = () => false;
      expect(await move()).toEqual({ error: null, wrong: null });
      const reads = planes.reads;
      expect(reads).toBeGreaterThanOrEqual(Math.max(from[0] * from[1], to[0] * to[1]) / 4);
      for (let flipped = 0; flipped < reads; flipped++) {
        planes.flips = (read) => read === flipped;
        const before = generation.stats().mismatches;
        expect(await move(), `read ${flipped}`).toEqual({ error: null, wrong: null });
        expect([generation.stats().mismatches - before, planes.reads]).toEqual([1, reads + 1]);
      }
      planes.flips = () => true;
      const { error } = await move();
      expect(error?.code).toBe("DIGEST_MISMATCH");
      expect(error?.message).toMatch(/tokens 5 to \d+, the sender's block/);
      for (const instance of [context, generation]) {
        expect(instance.pool.free).toBe(BLOCKS);
        expect(instance.stats().blocks).toMatchObject({ pinned: 0, quarantined: 0 });
      }
    });
  },
);
