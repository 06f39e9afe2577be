// One side of a transfer in a process of its own, driven over IPC by peer_process.ts. Runs dist/, as a user of the package would.
import { readdirSync, readFileSync } from "node:fs";
import { KvTransceiver, requestId } from "../../../dist/index.js";
import { FaultHooks } from "./fault_hooks.mjs";
import { HeldPlane } from "./held_plane.mjs";
import { serveCommands } from "./ipc_commands.mjs";

const UNTOUCHED = 0xee;
const BLOCK_MS = 2_000;
let kv;
const sends = new Map();
const receives = new Map();
const begins = new Map();

const block = () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, BLOCK_MS);

const hooks = new FaultHooks(({ state }, { pid = process.pid, act, say }) => {
  if (say) process.send({ reached: state });
  if (act === "exit") process.exit(0);
  if (act === "block") {
    if (state === "POSTED") block();
    else setImmediate(block);
    return;
  }
  if (act !== undefined) process.kill(pid, act);
});

const heldPlane = new HeldPlane();

/** The pool's bytes: itself in memory of the host, a copy of some blocks of one on a GPU. */
let copied;
async function bytesOf(ids) {
  if (kv.gpu === null) return kv.memory;
  copied ??= new ArrayBuffer(kv.pool.total * kv.blockBytes);
  for (const id of ids) new Uint8Array(copied).set(await kv.readBlock(id), id * kv.blockBytes);
  return copied;
}
async function putBack(ids) {
  if (kv.gpu === null) return;
  for (const id of ids) await kv.writeBlock(id, new Uint8Array(copied, id * kv.blockBytes, kv.blockBytes));
}

/** Calls `visit(byteOffset, layer, head, token)` for the vector of each token of the sequence, as `[layer][k|v][head][token][headDim]`. */
function eachVector(ids, visit) {
  const { layers, kvHeads, headDim, tokensPerBlock } = kv.layout;
  const vector = headDim * 4;
  for (const [place, id] of ids.entries()) {
    for (let plane = 0; plane < layers * 2 * kvHeads; plane++) {
      for (let slot = 0; slot < tokensPerBlock; slot++) {
        visit(id * kv.blockBytes + (plane * tokensPerBlock + slot) * vector, plane, place * tokensPerBlock + slot);
      }
    }
  }
}

const mark = (seed, plane, token) =>
  (Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(plane + 1, 0x85ebca6b) ^ Math.imul(token + 1, 0xc2b2ae35)) >>> 0;

const outcome = (promise) =>
  promise.then(
    (report) => ({ report }),
    (error) => ({ code: error.code ?? String(error), message: error.message }),
  );

function resources() {
  const fds = readdirSync("/proc/self/fd").length;
  const maps = readFileSync("/proc/self/maps", "utf8").split("\n");
  const rss = /RssAnon:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"));
  // Heap, stacks and libraries come and go with V8; what a transceiver maps are memfds.
  return { fds, maps: maps.filter((line) => line.includes("memfd:")).length, rssAnonKib: Number(rss[1]) };
}

async function begin({ id, state, peer, tokens, skipTokens = 0 }) {
  const hold = kv.pool.allocate(Math.ceil(tokens / kv.layout.tokensPerBlock));
  const bytes = new Uint8Array(await bytesOf(hold.ids));
  for (const block of hold.ids) bytes.fill(UNTOUCHED, block * kv.blockBytes, (block + 1) * kv.blockBytes);
  await putBack(hold.ids);
  let receiving;
  try {
    const source = peer === undefined ? { state } : { peer, requestId: requestId(id), tokens };
    receiving = kv.receive({ ...source, blocks: hold, skipTokens });
  } catch (error) {
    hold.release();
    throw error;
  }
  const seen = [];
  const watching = (async () => {
    for await (const arrived of receiving.progress) {
      seen.push(arrived);
      process.send({ arrived: `${id} ${arrived}` });
    }
  })().catch(() => {});
  receives.set(id, { receiving, hold, seen, watching, tokens, skipTokens });
}

const commands = {
  async open({ options, hooked = true }) {
    kv = await KvTransceiver.open(
      options,
      hooked ? { observer: hooks.observer, plane: (plane) => hooks.plane(heldPlane.around(plane)) } : {},
    );
    return { endpoints: kv.endpoints, infoEndpoints: kv.infoEndpoints, epoch: kv.epoch, pid: process.pid };
  },
  hold: ({ state }) => heldPlane.hold(state),
  letGo: () => heldPlane.letGo(),
  arm(spec) {
    hooks.armed = spec;
  },
  async send({ request, tokens, ready, seed, blocks }) {
    const hold = kv.pool.allocate(blocks ?? Math.ceil(tokens / kv.layout.tokensPerBlock));
    const words = new Uint32Array(await bytesOf(hold.ids));
    eachVector(hold.ids, (at, plane, token) => {
      words.fill(mark(seed, plane, token), at / 4, at / 4 + kv.layout.headDim);
    });
    await putBack(hold.ids);
    const sending = kv.send({
      requestId: requestId(request),
      tokens,
      blocks: hold,
      ...(ready === undefined ? {} : { ready }),
    });
    hold.release();
    sends.set(request, sending);
    return { state: sending.state };
  },
  ready({ request, tokens }) {
    sends.get(request).ready(tokens);
  },
  cancelSend: ({ request }) => sends.get(request).cancel(),
  sent: ({ request }) => outcome(sends.get(request).done),
  release: ({ state }) => kv.release(state),
  decline({ state }) {
    kv.decline(state);
  },
  finish({ request, first }) {
    sends.get(request).finish(first);
  },
  async receive(options) {
    const begun = begin(options);
    // Whoever asks for its end may not have waited for its beginning.
    begins.set(
      options.id,
      begun.catch(() => {}),
    );
    await begun;
  },
  cancelReceive: ({ id }) => receives.get(id).receiving.cancel(),
  /** The outcome, and how many vectors are wrong: neither the sender's where they should be, nor untouched where not. */
  async received({ id, seed }) {
    await begins.get(id);
    const { receiving, hold, seen, watching, tokens, skipTokens } = receives.get(id);
    const ended = await outcome(receiving.done);
    await watching;
    let wrong = 0;
    if (ended.report !== undefined) {
      const words = new Uint32Array(await bytesOf(hold.ids));
      const untouched = (UNTOUCHED * 0x01010101) >>> 0;
      eachVector(hold.ids, (at, plane, token) => {
        const expected = token >= skipTokens && token < tokens ? mark(seed, plane, token) : untouched;
        for (let word = 0; word < kv.layout.headDim; word++) if (words[at / 4 + word] !== expected) wrong++;
      });
    }
    hold.release();
    receives.delete(id);
    begins.delete(id);
    return { ...ended, wrong, seen };
  },
  stats: () => kv.stats(),
  resources,
  /** Of all threads of this process. */
  effort() {
    const { user, system } = process.cpuUsage();
    let wakes = 0;
    for (const task of readdirSync("/proc/self/task")) {
      const status = readFileSync(`/proc/self/task/${task}/status`, "utf8");
      wakes += Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)?.[1]);
    }
    return { cpuMs: (user + system) / 1_000, wakes };
  },
  /** Share of a core that this process takes while nothing is asked of it. */
  async cpuShare({ ms }) {
    const before = process.cpuUsage();
    const from = performance.now();
    await new Promise((resolve) => setTimeout(resolve, ms));
    const { user, system } = process.cpuUsage(before);
    return (user + system) / 1000 / (performance.now() - from);
  },
  health: () => kv.health(),
  waitForSenders: async ({ atLeast }) =>
    (await kv.waitForSenders({ atLeast })).map(({ requestId: request, error }) => ({
      request,
      code: error?.code ?? null,
    })),
  drain: () => kv.drain(),
  async close() {
    await kv.close();
    return resources();
  },
  exit: () => process.exit(0),
  /** Ends the IPC channel: from now on nothing but the transceiver may keep this process alive. */
  leave: () => setImmediate(() => process.disconnect()),
};

serveCommands(commands);
