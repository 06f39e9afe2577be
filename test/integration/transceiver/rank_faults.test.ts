import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { DataPlane, ReadListener, ReadRequest } from "../../../src/transceiver/data_plane.ts";
import { KvInstance } from "../../../src/transceiver/instance.ts";
import { joinStates } from "../../../src/transceiver/opaque_state.ts";
import { KvTransceiver } from "../../../src/transceiver/transceiver.ts";

const BLOCKS = 16;
const layout = { layers: 4, kvHeads: 4, headDim: 16, dtype: "f32", tokensPerBlock: 8, attention: "gqa" } as const;
let socketDir: string;
beforeAll(() => {
  socketDir = mkdtempSync(join(tmpdir(), "kvt-rank-faults-"));
});
afterAll(() => rmSync(socketDir, { recursive: true, force: true }));

const options = () => ({ layout, pool: { memory: "host" as const, blocks: BLOCKS }, socketDir });

/** Real planes; the read of one rank fails once those of the others hang, which stay unquiet until they are let go. */
class FailingReads {
  readonly #failing: number;
  readonly #ranks: number;
  readonly #hung: ReadListener[] = [];
  #opened = 0;
  #fail: (() => void) | null = null;

  constructor(failing: number, ranks: number) {
    this.#failing = failing;
    this.#ranks = ranks;
  }

  readonly around = (real: DataPlane): DataPlane => {
    const rank = this.#opened++;
    return new Proxy(real, {
      get: (plane, name) => {
        if (name === "read")
          return (_request: ReadRequest, listener: ReadListener) => this.#read(plane, rank, listener);
        const member: unknown = Reflect.get(plane, name, plane);
        return typeof member === "function" ? member.bind(plane) : member;
      },
    });
  };

  letGo(): void {
    for (const listener of this.#hung) listener.quiet();
  }

  #read(plane: DataPlane, rank: number, listener: ReadListener) {
    const end = (status: "failed" | "cancelled"): void =>
      listener.ended({ status, bytes: 0, movingMs: 0, path: "shared_memory", runs: 0, pieces: 0, atMs: plane.nowMs() });
    if (rank === this.#failing) {
      this.#fail = () => {
        end("failed");
        listener.quiet();
      };
    } else {
      this.#hung.push(listener);
    }
    if (this.#fail !== null && this.#hung.length === this.#ranks - 1) queueMicrotask(this.#fail);
    return { cancel: () => queueMicrotask(() => end("cancelled")) };
  }
}

it("one rank's failed read fails the request at once, and its blocks stay in quarantine until the other ranks' reads are quiet", async () => {
  const reads = new FailingReads(1, 2);
  await using context = await KvInstance.open({ ...options(), tpSize: 1, ppSize: 1 });
  await using generation = await KvInstance.open({ ...options(), tpSize: 2, ppSize: 1 }, { plane: reads.around });
  const source = context.pool.allocate(5);
  const sending = context.send({ requestId: requestId(1), tokens: 40, blocks: source });
  source.release();
  const target = generation.pool.allocate(5);
  const receiving = generation.receive({ state: sending.state, blocks: target });
  target.release();
  await expect(receiving.done).rejects.toMatchObject({ code: "COPY_FAILED" });
  await expect(sending.done).rejects.toMatchObject({ code: /RECEIVER_FAILED|CANCELLED/ });
  expect(context.pool.free).toBe(BLOCKS);
  expect(generation.pool.free).toBe(BLOCKS - 5);
  expect(generation.stats().blocks).toMatchObject({ quarantined: 5 });
  expect(generation.health()).toMatchObject({ status: "unhealthy", reasons: [/rank 0/] });
  reads.letGo();
  await receiving.released;
  expect(generation.pool.free).toBe(BLOCKS);
  expect(generation.health().status).toBe("ok");
});

it("ranks in transceivers of their own are joined by their states; one that is gone fails the request and leaves no other offer open", async () => {
  const place = (tpRank: number) => ({ tpRank, tpSize: 2, ppRank: 0, ppSize: 1 });
  await using first = await KvTransceiver.open({ ...options(), instance: "context", parallel: place(0) });
  await using second = await KvTransceiver.open({ ...options(), instance: "context", parallel: place(1) });
  await using whole = await KvTransceiver.open(options());
  const offer = (id: number) => {
    const [left, right] = [first, second].map((rank) => {
      using blocks = rank.pool.allocate(5);
      return rank.send({ requestId: requestId(id), tokens: 40, blocks });
    });
    if (left === undefined || right === undefined) throw new Error("two ranks");
    return { left, right, state: joinStates([left.state, right.state]) };
  };
  using target = whole.pool.allocate(5);
  const good = offer(1);
  expect((await whole.receive({ state: good.state, blocks: target }).done).bytes).toBe(40 * 4 * 2 * 4 * 16 * 4);
  await Promise.all([good.left.done, good.right.done]);

  const lost = offer(2);
  lost.right.done.catch(() => {});
  await second.close();
  const receiving = whole.receive({ state: lost.state, blocks: target });
  await expect(receiving.done).rejects.toMatchObject({ code: /PEER_|STALE_EPOCH/ });
  await lost.left.done.catch(() => {});
  await receiving.released;
  expect([first.pool.free, whole.pool.free]).toEqual([BLOCKS, BLOCKS - 5]);
});

it.each([
  [4, 1],
  [1, 4],
  [2, 4],
] as const)(
  "a state of %i ranks is declined by an instance of %i, and every rank's blocks are free at once",
  async (from, to) => {
    await using context = await KvInstance.open({ ...options(), tpSize: from, ppSize: 1 });
    await using generation = await KvInstance.open({ ...options(), tpSize: to, ppSize: 1 });
    const source = context.pool.allocate(5);
    const sending = context.send({ requestId: requestId(1), tokens: 40, blocks: source });
    source.release();
    generation.decline(sending.state);
    await expect(sending.done).rejects.toMatchObject({ code: "CANCELLED" });
    expect(context.pool.free).toBe(BLOCKS);
    expect(context.stats().sends.open).toBe(0);
    expect(generation.stats().receives.open).toBe(0);
  },
);
