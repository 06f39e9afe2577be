// Cases `4KiB-of-64MiB` and so on: scattered pieces from another process's pool, against memcpy of as many bytes.
import { fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { kind, openPlane } from "../../test/integration/dataplane/plane.mjs";
import { median } from "../statistics.mjs";
import { startMemcpy } from "./memcpy.mjs";

const KiB = 1024;
const MiB = 1024 * KiB;
const ROUNDS = 11;
const pieces = [
  { name: "4KiB", bytes: 4 * KiB },
  { name: "16KiB", bytes: 16 * KiB },
  { name: "64KiB", bytes: 64 * KiB },
  { name: "1MiB", bytes: MiB },
];
/** 1 and 16 MiB are reported without a target: they fit a cache, and memcpy of so little says less. */
const totals = [1, 16, 64, 256].map((count) => ({ name: `${count}MiB`, bytes: count * MiB }));

/** The same rule as native/paths/copy_crew.cc. */
export const copyThreads = Math.min(4, Math.max(1, Math.floor(availableParallelism() / 2)));

/** Larger than the last-level cache, and twice the largest total: no round finds what the one before it left in a cache. */
function poolBytes() {
  let cacheBytes = 32 * MiB;
  try {
    cacheBytes = Number.parseInt(readFileSync("/sys/devices/system/cpu/cpu0/cache/index3/size", "utf8"), 10) * KiB;
  } catch {}
  return Math.max(Math.ceil((1.5 * cacheBytes) / MiB), 512) * MiB;
}

/** A permutation of 0..count-1 in which neighbours are rare; the same in every run. */
function permutation(count, seed) {
  const table = Uint32Array.from({ length: count }, (_, index) => index);
  let state = seed;
  for (let index = count - 1; index > 0; index--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const other = Math.floor((state / 2 ** 32) * (index + 1));
    [table[index], table[other]] = [table[other], table[index]];
  }
  return table;
}

export async function runPieces(add, say, socketDir) {
  const bytes = poolBytes();
  const memcpy = await startMemcpy(bytes, copyThreads);
  const source = fork(new URL("./source.mjs", import.meta.url), { serialization: "advanced" });
  say(`pools of ${bytes / MiB} MiB, ${copyThreads} copy thread(s), ${ROUNDS} rounds interleaved with memcpy`);
  for (const piece of pieces) {
    const layout = { layers: 1, planes: 1, heads: 1, tokensPerBlock: 1, headBytes: piece.bytes };
    const blocks = bytes / piece.bytes;
    source.send({ layout, blocks, socketDir });
    const [descriptor] = await once(source, "message");
    const target = await openPlane({ layout, blocks, socketDir });
    target.plane.ref();
    target.plane.reach(1, new Uint8Array(descriptor), 60_000);
    const reached = await target.next(kind.REACHED, 1);
    if (reached[2] !== 0) throw new Error(`the source's pool was not reached: status ${reached[2]}`);
    const sourceTable = permutation(blocks, 1);
    const targetTable = permutation(blocks, 2);
    let job = 0;
    let at = 0;
    const move = async (count) => {
      if (at + count > blocks) at = 0;
      const tables = [sourceTable.slice(at, at + count), targetTable.slice(at, at + count)];
      at += count;
      target.plane.post(++job, 1, ...tables, 0, count, count, true, Number.POSITIVE_INFINITY, 0, 0xffffffff);
      const record = await target.next(kind.JOB, job);
      if (record[2] !== 0) throw new Error(`job status ${record[2]}`);
      return record[5];
    };
    for (const total of totals) {
      if (total.bytes < piece.bytes) continue;
      const name = `${piece.name}-of-${total.name}`;
      const count = total.bytes / piece.bytes;
      await move(count);
      await memcpy.copy(total.bytes);
      const ours = [];
      const theirs = [];
      let cpuUs = 0;
      for (let round = 0; round < ROUNDS; round++) {
        theirs.push(await memcpy.copy(total.bytes));
        const before = process.cpuUsage();
        ours.push(await move(count));
        const used = process.cpuUsage(before);
        cpuUs += used.user + used.system;
      }
      const rate = (us) => total.bytes / us / 1000;
      say(`${name} ours   GB/s: ${ours.map((us) => rate(us).toFixed(2)).join(" ")}`);
      say(`${name} memcpy GB/s: ${theirs.map((us) => rate(us).toFixed(2)).join(" ")}`);
      add(name, "move_gb_per_s", rate(median(ours)), "GB/s");
      add(name, "memcpy_gb_per_s", rate(median(theirs)), "GB/s");
      add(name, "ratio_memcpy", median(theirs) / median(ours), "");
      add(name, "cpu_s_per_gib", cpuUs / 1e6 / ((ROUNDS * total.bytes) / 2 ** 30), "s/GiB");
    }
    await target.plane.close();
  }
  source.disconnect();
  memcpy.close();
}
