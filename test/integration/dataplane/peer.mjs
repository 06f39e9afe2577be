// A child process with one data plane, driven over IPC: { call, args } in, { value } or { error } out.
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { countResources, fill, hash, kind, openPlane } from "./plane.mjs";

let opened;
const calls = {
  async open(options) {
    opened = await openPlane(options);
    return {
      descriptor: opened.plane.descriptor,
      blockBytes: opened.plane.blockBytes,
      poolBytes: opened.plane.poolBytes,
    };
  },
  fill: (seed) => fill(opened.plane.memory, seed),
  hash: (pieces) => hash(opened.plane.memory, pieces),
  async reach(peer, descriptor, timeoutMs) {
    opened.plane.reach(peer, descriptor, timeoutMs);
    return await opened.next(kind.REACHED, peer);
  },
  post: (job, peer, source, target, from, to, deadlineMs) =>
    opened.plane.post(
      job,
      peer,
      Uint32Array.from(source),
      Uint32Array.from(target),
      from,
      to,
      to,
      true,
      deadlineMs,
      0,
      0xffffffff,
    ),
  next: (wantedKind, id) => opened.next(wantedKind, id),
  stats: () => opened.plane.stats(),
  poolMaps: () =>
    readFileSync("/proc/self/maps", "utf8")
      .split("\n")
      .filter((line) => line.includes("kvt-pool"))
      .map((line) => line.split(" ")[1]),
  poolFds: () =>
    readdirSync("/proc/self/fd").filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).includes("kvt-pool");
      } catch {
        return false;
      }
    }),
  close: () => opened.plane.close(),
  async rounds(count, options, descriptor) {
    const round = async () => {
      const one = await openPlane(options);
      one.plane.ref();
      one.plane.reach(1, descriptor, 10_000);
      const reached = await one.next(kind.REACHED, 1);
      if (reached[2] !== 0) throw new Error(`reach status ${reached[2]}`);
      one.plane.post(
        1,
        1,
        Uint32Array.of(0, 1),
        Uint32Array.of(1, 0),
        0,
        2 * options.layout.tokensPerBlock,
        2 * options.layout.tokensPerBlock,
        true,
        Number.POSITIVE_INFINITY,
        0,
        0xffffffff,
      );
      await one.next(kind.JOB, 1);
      await one.plane.close();
    };
    await round();
    const before = countResources();
    for (let index = 0; index < count; index++) await round();
    return { before, after: countResources() };
  },
};

process.on("message", async ({ id, call, args }) => {
  try {
    process.send({ id, value: await calls[call](...args) });
  } catch (error) {
    process.send({ id, error: String(error?.stack ?? error) });
  }
});
