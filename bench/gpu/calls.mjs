// Through KvTransceiver, from JS call to JS resolution: one request of 1 MiB alone, and 8 of 256 MiB in flight.
import { fork } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { KvTransceiver } from "../../dist/index.js";
import { median, quantile } from "../statistics.mjs";

const MiB = 2 ** 20;
/**
 * The sender's blocks hold 64 tokens, the receiver's 32: a row of one plane and layer is a piece of 8 KiB here, and two of them lie side by
 * side there. 32 KiB a token, blocks of 2 and 1 MiB.
 */
const layout = { layers: 64, kvHeads: 1, headDim: 128, dtype: "bf16", attention: "gqa" };
const TOKEN_BYTES = 32 * 1024;
const SENDER_BLOCK = 64;
const BLOCK = 32;
const IN_FLIGHT = 8;
const REQUEST = 256 * MiB;
const tokensOf = (bytes) => bytes / TOKEN_BYTES;
const blocksFor = (tokens) => Math.ceil(tokens / BLOCK);

/** `verify` as in `open`: what it costs is the difference. */
export async function runCalls(add, say, socketDir, [from, to], verify) {
  const tokens = tokensOf(IN_FLIGHT * REQUEST);
  const theirs = [{ ...layout, tokensPerBlock: SENDER_BLOCK }, tokens / SENDER_BLOCK, socketDir, from];
  const child = fork(new URL("./sender.mjs", import.meta.url), [JSON.stringify(theirs)]);
  await once(child, "message");
  const ours = { ...layout, tokensPerBlock: BLOCK };
  const kv = await KvTransceiver.open({
    layout: ours,
    pool: { memory: to, blocks: tokens / BLOCK },
    socketDir,
    verify,
  });
  const echo = connect(join(socketDir, "echo.sock"));
  await once(echo, "connect");
  const offers = async (count, tokens) => {
    child.send({ offer: { count, tokens } });
    const [{ states }] = await once(child, "message");
    return states;
  };
  const receive = async (state, tokens) => {
    const blocks = kv.pool.allocate(blocksFor(tokens));
    const start = performance.now();
    const report = await kv.receive({ state, blocks }).done;
    const us = (performance.now() - start) * 1000;
    blocks.release();
    return { us, report };
  };
  const roundTrip = async () => {
    const start = performance.now();
    echo.write(Buffer.alloc(100));
    await once(echo, "data");
    return (performance.now() - start) * 1000;
  };

  const alone = [];
  const trips = [];
  const moves = [];
  for (let batch = 0; batch < 48; batch++) {
    for (const state of await offers(25, tokensOf(MiB))) {
      const { us, report } = await receive(state, tokensOf(MiB));
      const trip = await roundTrip();
      // The first batches connect, map the pool and warm up both JS engines.
      if (batch < 32) continue;
      alone.push(us);
      trips.push(trip);
      moves.push(report.movingMs * 1000);
    }
  }
  say(
    `peer-1MiB, verify ${verify}: ${alone.length} calls one at a time; of these the GPU moved for ${median(moves).toFixed(1)} µs p50`,
  );
  const one = `peer-1MiB${verify === "off" ? "" : `-${verify}`}`;
  add(one, "call_us_p50", quantile(alone, 0.5), "µs");
  add(one, "call_us_p99", quantile(alone, 0.99), "µs");
  add(one, "control_round_trip_us_p50", quantile(trips, 0.5), "µs");

  const name = `peer-8KiB-of-256MiB${verify === "off" ? "" : `-${verify}`}`;
  const rates = [];
  for (let round = 0; round < 9; round++) {
    const states = await offers(IN_FLIGHT, tokensOf(REQUEST));
    const start = performance.now();
    const ended = await Promise.all(states.map((state) => receive(state, tokensOf(REQUEST))));
    const ms = performance.now() - start;
    const bytes = ended.reduce((sum, { report }) => sum + report.bytes, 0);
    if (round > 2) rates.push(bytes / ms / 1e6);
    say(
      `${name}: 8 in flight took ${ms.toFixed(2)} ms, the GPU ${ended.map(({ report }) => report.movingMs.toFixed(2))} ms`,
    );
  }
  add(name, "call_gb_per_s", median(rates), "GB/s");
  echo.destroy();
  await kv.close();
  child.disconnect();
}
