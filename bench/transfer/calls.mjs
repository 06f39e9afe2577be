// Cases through KvTransceiver, from JS call to JS resolution: receive-one-block, eight-receives, loop-delay, open-loop.
import { fork } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { monitorEventLoopDelay, performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { KvTransceiver } from "../../dist/index.js";
import { quantile } from "../statistics.mjs";

const MiB = 2 ** 20;
/** SmolLM2-135M in bf16 with blocks of 4 tokens: 92,160 bytes a block, 46 blocks are 4 MiB. */
const layout = { layers: 30, kvHeads: 3, headDim: 64, dtype: "bf16", tokensPerBlock: 4, attention: "gqa" };
const BLOCKS = 4096;
const BATCH = 50;
/** Of `loop-delay`, all of one peer. */
const IN_FLIGHT = 64;
/** As long as a PULL. */
const ECHO = Buffer.alloc(100);

class Pair {
  static async open(socketDir) {
    const pair = new Pair();
    pair.child = fork(new URL("./sender.mjs", import.meta.url), [
      JSON.stringify([layout, BLOCKS, socketDir, IN_FLIGHT]),
    ]);
    await once(pair.child, "message");
    pair.echo = connect(join(socketDir, "echo.sock"));
    await once(pair.echo, "connect");
    pair.child.on("message", (message) => {
      if (message.states !== undefined) pair.#waiting.shift()(message.states);
      if (message.cpuSeconds !== undefined) pair.#waitingForCpu.shift()(message.cpuSeconds);
    });
    pair.kv = await KvTransceiver.open({
      layout,
      pool: { memory: "host", blocks: BLOCKS },
      socketDir,
      maxConcurrentPulls: IN_FLIGHT,
      maxConcurrentPullsPerPeer: IN_FLIGHT,
    });
    return pair;
  }

  /** The sender answers offers in the order in which they were asked for. */
  offers(count, tokens) {
    this.child.send({ offer: { count, tokens } });
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #waiting = [];
  #waitingForCpu = [];

  /** One receive into fresh blocks; microseconds from the call to the promise's resolution. */
  async receive(state, tokens) {
    const blocks = this.kv.pool.allocate(Math.ceil(tokens / layout.tokensPerBlock));
    const start = performance.now();
    const report = await this.kv.receive({ state, blocks }).done;
    const us = (performance.now() - start) * 1000;
    blocks.release();
    return { us, report };
  }

  /** Microseconds for 100 bytes to the sender's JS thread and back, over a bare unix socket. */
  async controlRoundTrip() {
    const start = performance.now();
    this.echo.write(ECHO);
    await once(this.echo, "data");
    return (performance.now() - start) * 1000;
  }

  /** Seconds of CPU that both processes have used. */
  async cpuSeconds() {
    this.child.send({ cpu: true });
    const theirs = await new Promise((resolve) => this.#waitingForCpu.push(resolve));
    const { user, system } = process.cpuUsage();
    return theirs + (user + system) / 1e6;
  }

  async close() {
    this.echo.destroy();
    await this.kv.close();
    this.child.disconnect();
  }
}

function addLatencies(add, name, us) {
  add(name, "call_us_p50", quantile(us, 0.5), "µs");
  add(name, "call_us_p99", quantile(us, 0.99), "µs");
  add(name, "call_us_max", Math.max(...us), "µs");
}

async function receiveOneBlock(pair, add, say) {
  const us = [];
  const roundTrips = [];
  for (let batch = 0; batch < 60; batch++) {
    const states = await pair.offers(BATCH, layout.tokensPerBlock);
    // In each batch, so that both meet the same machine.
    for (let index = 0; index < BATCH; index++) {
      const one = await pair.controlRoundTrip();
      if (batch >= 20) roundTrips.push(one);
    }
    for (const state of states) {
      const { us: one } = await pair.receive(state, layout.tokensPerBlock);
      // The first batches connect, map the pool and warm up both JS engines.
      if (batch >= 20) us.push(one);
    }
  }
  say(`receive-one-block: ${pair.kv.blockBytes} bytes, ${us.length} calls, one at a time`);
  addLatencies(add, "receive-one-block", us);
  add("receive-one-block", "control_round_trip_us_p50", quantile(roundTrips, 0.5), "µs");
}

/** `call_gb_per_s`: 8 receives of 4 MiB in flight. Offers come in batches, as the pool holds 89 of them; only the receives are timed. */
async function eightReceives(pair, add) {
  const tokens = Math.round((4 * MiB) / pair.kv.blockBytes) * layout.tokensPerBlock;
  let bytes = 0;
  let ms = 0;
  for (let batch = 0; batch < 9; batch++) {
    const states = await pair.offers(64, tokens);
    let moved = 0;
    const lane = async () => {
      for (let state = states.pop(); state !== undefined; state = states.pop()) {
        moved += (await pair.receive(state, tokens)).report.bytes;
      }
    };
    const start = performance.now();
    await Promise.all(Array.from({ length: 8 }, lane));
    // The first batch warms up both JS engines and the caches.
    if (batch === 0) continue;
    ms += performance.now() - start;
    bytes += moved;
  }
  add("eight-receives", "call_gb_per_s", bytes / ms / 1e6, "GB/s");
}

async function delayDuring(work) {
  const histogram = monitorEventLoopDelay({ resolution: 1 });
  histogram.enable();
  await work();
  histogram.disable();
  return { p99: histogram.percentile(99) / 1e6, max: histogram.max / 1e6 };
}

/** 64 receives of 4 MiB always in flight, each started by itself: the sender's part of a lane is told over IPC as it goes. */
async function loopDelay(pair, add) {
  const tokens = Math.round((4 * MiB) / pair.kv.blockBytes) * layout.tokensPerBlock;
  const idle = await delayDuring(() => sleep(2_000));
  let running = true;
  let moved = 0;
  const lane = async () => {
    while (running) {
      const [state] = await pair.offers(1, tokens);
      await pair.receive(state, tokens);
      moved++;
    }
  };
  const lanes = [];
  for (let index = 0; index < IN_FLIGHT; index++) {
    lanes.push(lane());
    await sleep(5);
  }
  const movedBefore = moved;
  const cpuBefore = await pair.cpuSeconds();
  const busy = await delayDuring(() => sleep(4_000));
  const cpu = (await pair.cpuSeconds()) - cpuBefore;
  const transfers = moved - movedBefore;
  running = false;
  await Promise.all(lanes);
  add("loop-delay", "transfers", transfers, "");
  // Of both processes, copies included: says what a transfer costs also where others use the machine.
  add("loop-delay", "cpu_us_per_transfer", (cpu / transfers) * 1e6, "µs");
  add("loop-delay", "idle_ms_p99", idle.p99, "ms");
  add("loop-delay", "delay_ms_p99", Math.max(0, busy.p99 - idle.p99), "ms");
  add("loop-delay", "delay_ms_max", busy.max, "ms");
}

/** A receive each 5 ms, whether or not the one before has ended, while the sender tokenises. */
async function openLoop(pair, add, say) {
  const states = await pair.offers(400, layout.tokensPerBlock);
  pair.child.send({ tokenize: true });
  const [{ tokenizing }] = await once(pair.child, "message");
  say(`open-loop: the sender tokenises ${tokenizing} tokens at a time`);
  const running = [];
  const start = performance.now();
  for (const [index, state] of states.entries()) {
    const due = start + index * 5;
    if (performance.now() < due) await sleep(due - performance.now());
    // From when it was due: a late start is part of what a caller waits.
    const late = Math.max(0, performance.now() - due) * 1000;
    running.push(pair.receive(state, layout.tokensPerBlock).then(({ us }) => us + late));
  }
  const us = await Promise.all(running);
  pair.child.send({ tokenize: false });
  addLatencies(add, "open-loop", us);
}

export const callCases = {
  "receive-one-block": receiveOneBlock,
  "eight-receives": eightReceives,
  "loop-delay": loopDelay,
  "open-loop": openLoop,
};

/** One after the other, between the same two processes. */
export async function runCalls(add, say, socketDir, cases = Object.keys(callCases)) {
  const pair = await Pair.open(socketDir);
  for (const name of cases) await callCases[name](pair, add, say);
  await pair.close();
}
