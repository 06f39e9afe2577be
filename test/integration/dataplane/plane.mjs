// One data plane with its completions made awaitable: what src/transceiver does for real, small enough for child processes of tests.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { packedLayout } from "./packed_layout.mjs";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const require = createRequire(import.meta.url);
export const native = require(require("node-gyp-build").resolve(root));

export const kind = {
  JOB: 1,
  JOB_QUIET: 2,
  RENEWED: 4,
  RENEW_END: 5,
  LEASE_OVER: 6,
  TIMER: 8,
};
kind.REACHED = 9;
kind.PEER_DEAD = 10;

export async function openPlane({ layout, blocks, socketDir, epoch = "00000000000000aa", check = false }) {
  const seen = [];
  const waiting = new Set();
  const onCompletions = (batch) => {
    for (let at = 0; at < batch.length; at += 10) seen.push([...batch.subarray(at, at + 10)]);
    for (const look of [...waiting]) look();
  };
  const plane = await native.openDataPlane(
    { layout: packedLayout(layout), blocks, socketDir, epoch, check },
    onCompletions,
  );
  /** The next completion [kind, id, status, bytes, queuedUs, movingUs, atMs, extra] of that kind and id; each is given out once. */
  const next = (wantedKind, id) =>
    new Promise((resolve) => {
      const look = () => {
        const at = seen.findIndex((record) => record[0] === wantedKind && record[1] === id);
        if (at < 0) return;
        waiting.delete(look);
        resolve(seen.splice(at, 1)[0]);
      };
      waiting.add(look);
      look();
    });
  return { plane, next, seen };
}

/** Bytes that depend on the seed and on every position. */
export function fill(memory, seed) {
  const words = new Uint32Array(memory);
  for (let at = 0; at < words.length; at++) words[at] = Math.imul(at + seed, 2654435761) ^ (at >>> 7);
}

/** SHA-256 over the pieces [offset, bytes], one after the other. */
export function hash(memory, pieces) {
  const digest = createHash("sha256");
  for (const [offset, bytes] of pieces) digest.update(new Uint8Array(memory, offset, bytes));
  return digest.digest("hex");
}

/** Open file descriptors and pool mappings of this process. */
export function countResources() {
  const fds = readdirSync("/proc/self/fd").length;
  const maps = readFileSync("/proc/self/maps", "utf8").match(/kvt-pool/g)?.length ?? 0;
  const threads = readdirSync("/proc/self/task").length;
  return { fds, maps, threads };
}
