// What comparing digests costs: cases verify-off, verify-sampled, verify-full, in turns against one sender.
import { fork } from "node:child_process";
import { once } from "node:events";
import { performance } from "node:perf_hooks";
import { KvTransceiver } from "../../dist/index.js";
import { median } from "../statistics.mjs";

const MiB = 2 ** 20;
/** SmolLM2-135M in bf16, blocks of 32 tokens: 737,280 bytes. */
const layout = { layers: 30, kvHeads: 3, headDim: 64, dtype: "bf16", tokensPerBlock: 32, attention: "gqa" };
const BLOCKS = 512;
const MODES = ["off", "sampled", "full"];
const ROUNDS = 15;
const IN_FLIGHT = 8;
const TRANSFERS = 32;
const TOKENS = 192;

export async function runVerify(add, say, socketDir) {
  const child = fork(new URL("./sender.mjs", import.meta.url), [
    JSON.stringify([layout, BLOCKS, socketDir, IN_FLIGHT]),
  ]);
  await once(child, "message");
  const receivers = new Map();
  for (const verify of MODES) {
    receivers.set(
      verify,
      await KvTransceiver.open({ layout, pool: { memory: "host", blocks: 64 }, socketDir, verify }),
    );
  }
  const cpuSeconds = async () => {
    child.send({ cpu: true });
    const [{ cpuSeconds: theirs }] = await once(child, "message");
    const { user, system } = process.cpuUsage();
    return theirs + (user + system) / 1e6;
  };

  /** 32 receives, 8 in flight; GB/s from the first call to the last resolution, and seconds of CPU of both processes for each GiB. */
  const measure = async (kv) => {
    child.send({ offer: { count: TRANSFERS, tokens: TOKENS } });
    const [{ states }] = await once(child, "message");
    const cpuBefore = await cpuSeconds();
    let bytes = 0;
    const lane = async () => {
      for (let state = states.pop(); state !== undefined; state = states.pop()) {
        const blocks = kv.pool.allocate(TOKENS / layout.tokensPerBlock);
        bytes += (await kv.receive({ state, blocks }).done).bytes;
        blocks.release();
      }
    };
    const start = performance.now();
    await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
    const gbPerS = bytes / (performance.now() - start) / 1e6;
    return { gbPerS, cpuSPerGib: ((await cpuSeconds()) - cpuBefore) / (bytes / 2 ** 30) };
  };

  const runs = new Map(MODES.map((mode) => [mode, []]));
  for (let round = 0; round <= ROUNDS; round++) {
    for (const mode of MODES) {
      const run = await measure(receivers.get(mode));
      // The first round connects, maps the pool and warms up both JS engines.
      if (round > 0) runs.get(mode).push(run);
    }
  }
  const off = runs.get("off");
  say(
    `verify: ${TRANSFERS} receives of ${(((TOKENS / 32) * receivers.get("off").blockBytes) / MiB).toFixed(1)} MiB, in turns`,
  );
  for (const mode of MODES) {
    const own = runs.get(mode);
    const name = `verify-${mode}`;
    add(name, "call_gb_per_s", median(own.map(({ gbPerS }) => gbPerS)), "GB/s");
    add(name, "cpu_s_per_gib", median(own.map(({ cpuSPerGib }) => cpuSPerGib)), "s");
    // Each round against its neighbour: the machine changes more from round to round than the modes do.
    if (mode !== "off") add(name, "ratio_off", median(own.map(({ gbPerS }, at) => gbPerS / off[at].gbPerS)), "");
  }
  for (const kv of receivers.values()) await kv.close();
  child.disconnect();
}
