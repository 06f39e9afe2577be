// Brings one data plane into a state, says so, and ends this process or thread in a given way: `lifetime.mjs STATE END DIRECTORY`.
import { parentPort, workerData } from "node:worker_threads";
import { packedLayout } from "./packed_layout.mjs";
import { kind, native, openPlane } from "./plane.mjs";

const [state, end, socketDir] = workerData ?? process.argv.slice(2);
const layout = { layers: 2, planes: 2, heads: 2, tokensPerBlock: 32, headBytes: 128 };
const blocks = 4096;
const never = Number.POSITIVE_INFINITY;
const table = Uint32Array.from({ length: blocks }, (_, index) => index ^ 1);
const options = { layout, blocks, socketDir };

const peerOf = async (one) => {
  const other = await openPlane(options);
  one.plane.reach(1, other.plane.descriptor, 10_000);
  await one.next(kind.REACHED, 1);
  return other;
};

/** Each leaves the plane in its state and answers what to keep. */
const states = {
  opening: () =>
    native.openDataPlane(
      { layout: packedLayout(layout), blocks: 65_536, socketDir, epoch: "00000000000000aa", check: false },
      () => {},
    ),
  idle: () => openPlane(options),
  async reaching() {
    const one = await openPlane(options);
    const other = await openPlane({ ...options, blocks: 16_384 });
    one.plane.reach(1, other.plane.descriptor, 10_000);
    return one;
  },
  async reached() {
    const one = await openPlane(options);
    one.plane.ref();
    await peerOf(one);
    one.plane.unref();
    return one;
  },
  async moving() {
    const one = await openPlane(options);
    one.plane.ref();
    await peerOf(one);
    for (let job = 0; job < 20; job++)
      one.plane.post(job, 1, table, table, 0, blocks * 32, blocks * 32, true, never, 0, 0xffffffff);
    one.plane.unref();
    return one;
  },
  async leased() {
    const one = await openPlane(options);
    one.plane.grant(1, 60_000);
    one.plane.setTimer(1, native.bootTimeMs() + 60_000);
    return one;
  },
  async flooded() {
    const one = await openPlane(options);
    for (let timer = 0; timer < 20_000; timer++) one.plane.setTimer(timer, 1);
    return one;
  },
  async closing() {
    const one = await states.moving();
    one.plane.close();
    return one;
  },
  async closed() {
    const one = await openPlane(options);
    await one.plane.close();
    return one;
  },
};

const ends = {
  return: () => {},
  exit: () => process.exit(7),
  throw: () => {
    throw new Error("thrown on purpose");
  },
  /** The caller ends this thread. */
  wait: () => setInterval(() => {}, 1000),
  close: async (kept) => {
    kept.plane.ref();
    await kept.plane.close();
  },
};

const say = (word) => (parentPort ? parentPort.postMessage(word) : process.send(word));
const kept = state === "opening" ? void states.opening() : await states[state]();
say("ready");
if (process.send && !parentPort) process.disconnect();
// Outside of any promise: an error here ends the process as an uncaught exception.
setImmediate(() => ends[end](kept));
