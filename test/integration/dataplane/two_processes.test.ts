import { closeSync, openSync, readdirSync, writeSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { completionKind, jobStatus, reachStatus } from "../../../src/native/plane_binding.ts";
import { layout, Peer, piecesOf, restOf, SocketDirectory } from "./peer.ts";

const { JOB, JOB_QUIET, PEER_DEAD } = completionKind;
const BLOCKS = 64;
const identity = Array.from({ length: BLOCKS }, (_, index) => index);
/** A fixed permutation without neighbours: 37 and 64 have no common factor. */
const permuted = identity.map((index) => (index * 37 + 11) % BLOCKS);
const reversed = [...identity].reverse();

async function pair(directory: SocketDirectory, source: Peer, target: Peer) {
  const from = await source.open({ blocks: BLOCKS, socketDir: directory.path });
  const to = await target.open({ blocks: BLOCKS, socketDir: directory.path });
  await source.call("fill", 17);
  await target.call("fill", 99);
  const reached = await target.call<readonly number[]>("reach", 1, from.descriptor, 10_000);
  expect(reached[2]).toBe(reachStatus.OK);
  expect(reached[7]).toBe(source.process.pid);
  return to;
}

describe("two processes", () => {
  const full = BLOCKS * layout.tokensPerBlock;
  const cases = [
    { name: "whole sequences between equal tables", source: identity, target: identity, from: 0, to: full },
    { name: "whole sequences between permuted tables", source: permuted, target: reversed, from: 0, to: full },
    { name: "a range that starts and ends inside blocks", source: permuted, target: identity, from: 45, to: 1003 },
    { name: "a single token", source: permuted, target: reversed, from: 100, to: 101 },
    { name: "a range inside one block", source: identity, target: permuted, from: 33, to: 60 },
  ];
  for (const { name, source: sourceTable, target: targetTable, from, to } of cases) {
    it(`move ${name}: SHA-256 of the moved bytes is equal, and no other byte changed`, async () => {
      using directory = new SocketDirectory();
      await using source = new Peer();
      await using target = new Peer();
      const { blockBytes, poolBytes } = await pair(directory, source, target);
      const sourcePieces = piecesOf(layout, blockBytes, sourceTable, from, to);
      const targetPieces = piecesOf(layout, blockBytes, targetTable, from, to);
      const rest = restOf(poolBytes, targetPieces);
      const restBefore = await target.call<string>("hash", rest);
      const wanted = await source.call<string>("hash", sourcePieces);
      expect(await target.call<string>("hash", targetPieces)).not.toBe(wanted);

      await target.call("post", 5, 1, sourceTable, targetTable, from, to, Number.POSITIVE_INFINITY);
      const job = await target.next(JOB, 5);
      await target.next(JOB_QUIET, 5);

      expect(job[2]).toBe(jobStatus.OK);
      expect(job[3]).toBe((to - from) * layout.layers * layout.planes * layout.heads * layout.headBytes);
      expect(await target.call<string>("hash", targetPieces)).toBe(wanted);
      expect(await target.call<string>("hash", rest)).toBe(restBefore);
    });
  }

  it("refuse blocks that a pool doesn't have, and unknown peers", async () => {
    using directory = new SocketDirectory();
    await using source = new Peer();
    await using target = new Peer();
    await pair(directory, source, target);
    await target.call("post", 1, 1, [BLOCKS], [0], 0, 32, Number.POSITIVE_INFINITY);
    expect((await target.next(JOB, 1))[2]).toBe(jobStatus.BAD_RANGE);
    await target.call("post", 2, 1, [0], [0], 0, 33, Number.POSITIVE_INFINITY);
    expect((await target.next(JOB, 2))[2]).toBe(jobStatus.BAD_RANGE);
    await target.call("post", 3, 2, [0], [0], 0, 32, Number.POSITIVE_INFINITY);
    expect((await target.next(JOB, 3))[2]).toBe(jobStatus.NO_PEER);
  });

  it("can only read each other's pool: the mapping is read-only and writing the file is EPERM", async () => {
    using directory = new SocketDirectory();
    await using source = new Peer();
    await using target = new Peer();
    await pair(directory, source, target);
    const maps = await target.call<string[]>("poolMaps");
    expect(maps.sort()).toEqual(["r--s", "rw-s"]);
    for (const fd of await source.call<string[]>("poolFds")) {
      // The owner itself can open its file for writing through /proc; the seals still refuse every write.
      const file = openSync(`/proc/${source.process.pid}/fd/${fd}`, "r+");
      expect(() => writeSync(file, "x", 0)).toThrow(/EPERM/);
      closeSync(file);
    }
  });

  it("tell the death of a killed peer, and what it had granted still arrives with the right bytes", async () => {
    using directory = new SocketDirectory();
    await using source = new Peer();
    await using target = new Peer();
    const { blockBytes } = await pair(directory, source, target);
    const wanted = await source.call<string>("hash", piecesOf(layout, blockBytes, permuted, 0, full));
    const dead = target.next(PEER_DEAD, 1);
    await target.call("post", 7, 1, permuted, reversed, 0, full, Number.POSITIVE_INFINITY);
    await source.kill("SIGKILL");
    expect((await target.next(JOB, 7))[2]).toBe(jobStatus.OK);
    await dead;
    expect(await target.call<string>("hash", piecesOf(layout, blockBytes, reversed, 0, full))).toBe(wanted);

    await target.call("fill", 1);
    await target.call("post", 8, 1, permuted, reversed, 0, full, Number.POSITIVE_INFINITY);
    expect((await target.next(JOB, 8))[2]).toBe(jobStatus.OK);
    expect(await target.call<string>("hash", piecesOf(layout, blockBytes, reversed, 0, full))).toBe(wanted);
  });

  it("leave no socket file: neither a closed plane nor, once another opens, a killed one", async () => {
    using directory = new SocketDirectory();
    await using killed = new Peer();
    await using closed = new Peer();
    await killed.open({ blocks: 2, socketDir: directory.path });
    await killed.kill("SIGKILL");
    expect(readdirSync(directory.path)).toHaveLength(1);
    await closed.open({ blocks: 2, socketDir: directory.path });
    expect(readdirSync(directory.path)).toHaveLength(1);
    await closed.call("close");
    expect(readdirSync(directory.path)).toHaveLength(0);
  });

  it("hold no descriptor, mapping or thread more after 100 rounds of open, reach, move, close", async () => {
    using directory = new SocketDirectory();
    await using source = new Peer();
    await using target = new Peer();
    const { descriptor } = await source.open({ blocks: BLOCKS, socketDir: directory.path });
    const options = { layout, blocks: BLOCKS, socketDir: directory.path };
    const { before, after } = await target.call<Record<string, unknown>>("rounds", 100, options, descriptor);
    expect(after).toEqual(before);
  });
});
