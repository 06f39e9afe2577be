// worker.mjs ROLE SOCKET_DIRECTORY: "context" offers a sequence of blocks, "generation" pulls it.
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const [role, socketDir] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const native = require(require("node-gyp-build").resolve(fileURLToPath(new URL("../..", import.meta.url))));

const blocks = 16_384;
const layout = { layers: 2, planes: 2, heads: 1, tokensPerBlock: 8, headBytes: 128 };
const records = [];
let arrived = () => {};
const plane = await native.openDataPlane(
  { layout, blocks, socketDir, epoch: "0123456789abcdef", check: false },
  (batch) => {
    for (let at = 0; at < batch.length; at += 8) records.push(batch.slice(at, at + 8));
    arrived();
  },
);
plane.ref();

/** The completion of that kind and id (kinds: src/native/plane_binding.ts). */
async function completion(kind, id) {
  for (;;) {
    const at = records.findIndex((record) => record[0] === kind && record[1] === id);
    if (at >= 0) return records.splice(at, 1)[0];
    await new Promise((resolve) => {
      arrived = resolve;
    });
  }
}

function sha256(table) {
  const digest = createHash("sha256");
  for (const block of table) digest.update(new Uint8Array(plane.memory, block * plane.blockBytes, plane.blockBytes));
  return digest.digest("hex");
}

/** Where the sequence lies: scattered at the source, backwards at the target. */
const sourceTable = Uint32Array.from({ length: blocks }, (_, index) => (index * 7919) % blocks);
const targetTable = Uint32Array.from({ length: blocks }, (_, index) => blocks - 1 - index);

if (role === "context") {
  const words = new Uint32Array(plane.memory);
  for (let at = 0; at < words.length; at++) words[at] = Math.imul(at, 2654435761);
  process.send({ descriptor: plane.descriptor, sha256: sha256(sourceTable) });
} else {
  const [descriptor] = await once(process, "message");
  plane.reach(1, new Uint8Array(descriptor), 5_000);
  const reached = await completion(9, 1);
  if (reached[2] !== 0) throw new Error(`the pool was not reached: status ${reached[2]}`);
  const moves = [];
  for (let job = 1; job <= 3; job++) {
    plane.post(job, 1, sourceTable, targetTable, 0, blocks * layout.tokensPerBlock, Number.POSITIVE_INFINITY);
    const done = await completion(1, job);
    if (done[2] !== 0) throw new Error(`the move ended with status ${done[2]}`);
    moves.push({ bytes: done[3], us: done[5] });
  }
  process.send({ sha256: sha256(targetTable), moves });
}
