// How long the blocks of a request stay taken after its client has left: the client closes its connection to the router in the very step
// named by the case, two workers, one router, real sockets, one process.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { resolveRouter } from "../../dist/config/router_settings.js";
import { defaultWorkerSettings } from "../../dist/config/worker_settings.js";
import { createLogger } from "../../dist/observability/log.js";
import { startRouter } from "../../dist/router/server.js";
import { startWorker } from "../../dist/worker/server.js";

const ROUNDS = 100;
const model = fileURLToPath(new URL("../../models/tiny.gguf", import.meta.url));
const LONG = {
  prompt: Array.from({ length: 1024 }, (_, index) => 5 + (index % 300)),
  max_tokens: 1000,
  ignore_eos: true,
  temperature: 0,
  stream: true,
};

/** Case: the step in which the client leaves, and whose blocks, in which phase, are watched. */
const cases = {
  prefill: { at: "context step", freed: "context prefill" },
  offered: { at: "context DISAGG_CONTEXT_TRANS_IN_PROGRESS", freed: "context offered" },
  granted: { at: "read", freed: "context granted" },
  receiving: { at: "read", freed: "generation receiving" },
  decode: { at: "generation GENERATION_IN_PROGRESS", freed: "generation decode" },
};

let act;
const reached = (at) => {
  if (act?.at === at) act.run();
};
let onFreed = () => {};
const hooksOf = (side) => ({
  onChange: ({ to }) => reached(`${side} ${to}`),
  onStep: () => reached(`${side} step`),
  onFreed: (phase) => onFreed(`${side} ${phase}`),
});

/** Reads that are watched for don't begin: they end when they are cancelled. */
const holdReads = (real) =>
  new Proxy(real, {
    get: (plane, name) => {
      const member = Reflect.get(plane, name, plane);
      if (name !== "read") return typeof member === "function" ? member.bind(plane) : member;
      return (request, listener) => {
        if (act?.at !== "read") return plane.read(request, listener);
        act.run();
        return {
          cancel: () =>
            queueMicrotask(() => {
              const nothing = { bytes: 0, movingMs: 0, path: "shared_memory", runs: 0, pieces: 0 };
              listener.ended({ status: "cancelled", ...nothing, atMs: plane.nowMs() });
              listener.quiet();
            }),
        };
      };
    },
  });

export async function run(add, say) {
  const socketDir = mkdtempSync(join(tmpdir(), "kvt-bench-"));
  const log = createLogger({ name: "bench", level: "fatal" });
  const defaults = defaultWorkerSettings(model);
  const settings = {
    ...defaults,
    host: "127.0.0.1",
    port: 0,
    transceiver: {
      backend: "DEFAULT",
      maxTokensInBuffer: null,
      kvTransferTimeoutMs: 60_000,
      kvTransferSenderFutureTimeoutMs: 1_000,
    },
    kvCache: { ...defaults.kvCache, enableBlockReuse: false, maxTokens: 4096 },
    maxBatchSize: 1,
    socketDir,
  };
  const context = await startWorker(settings, { log, ...hooksOf("context") });
  const generation = await startWorker(settings, { log, ...hooksOf("generation"), transceiver: { plane: holdReads } });
  const group = ({ url }) => ({ servers: [{ url, origin: url }], policy: "round_robin" });
  const router = await startRouter(
    {
      ...resolveRouter({}).settings,
      host: "127.0.0.1",
      port: 0,
      context: group(context),
      generation: group(generation),
    },
    { log },
  );
  try {
    await router.ready;
    say(`${ROUNDS} clients a case; from the close of the client's connection to the release of the last block`);
    for (const [name, { at, freed }] of Object.entries(cases)) {
      const times = [];
      for (let round = 0; round < ROUNDS; round++) {
        const ms = await leave(router.url, at, freed);
        if (ms !== undefined) times.push(ms);
        await settled(context, generation);
      }
      report(add, name, times);
    }
    report(add, "queued", await leaveQueue(context, router));
  } finally {
    await router.close({ drainMs: 0 });
    await Promise.all([context, generation].map((worker) => worker.close({ drainMs: 0 })));
    rmSync(socketDir, { recursive: true, force: true });
  }
}

function report(add, name, times) {
  times.sort((left, right) => left - right);
  const at = (part) => times[Math.floor(part * (times.length - 1))] ?? Number.NaN;
  add(name, "rounds", times.length, "");
  add(name, "left_to_free_ms_p50", at(0.5), "ms");
  add(name, "left_to_free_ms_p99", at(0.99), "ms");
  add(name, "left_to_free_ms_max", at(1), "ms");
}

const ask = (url, signal) =>
  fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(LONG),
    signal,
  })
    .then((response) => response.text())
    .catch(() => {});

/** Undefined: the blocks were free already, by the other side's word. */
async function leave(url, at, freed) {
  const client = new AbortController();
  let leftMs;
  const free = new Promise((resolve) => {
    onFreed = (what) => {
      if (what === freed && leftMs !== undefined) resolve(performance.now() - leftMs);
    };
  });
  act = {
    at,
    run: () => {
      act = undefined;
      leftMs = performance.now();
      client.abort();
    },
  };
  const limit = new Promise((resolve) => setTimeout(resolve, 2_000).unref());
  await ask(url, client.signal);
  return Promise.race([free, limit]);
}

/** Behind a request that decodes. */
async function leaveQueue(context, router) {
  const times = [];
  const occupant = new AbortController();
  const occupy = async () => {
    while (!occupant.signal.aborted) await ask(context.url, occupant.signal);
  };
  const occupied = occupy();
  for (let round = 0; round < ROUNDS; round++) {
    const client = new AbortController();
    let leftMs = 0;
    const free = new Promise((resolve) => {
      onFreed = (what) => {
        if (what === "context queued") resolve(performance.now() - leftMs);
      };
    });
    const answer = ask(router.url, client.signal);
    while ((await waiting(context)) === 0);
    leftMs = performance.now();
    client.abort();
    await answer;
    times.push(await free);
  }
  occupant.abort();
  await occupied;
  return times;
}

const waiting = async ({ url }) =>
  Number(/kvt_worker_requests\{state="waiting"\} (\d+)/.exec(await (await fetch(`${url}/metrics`)).text())?.[1]);

async function settled(...workers) {
  for (const { url } of workers) {
    for (;;) {
      const { blocks, sends } = await (await fetch(`${url}/kv/peers`)).json();
      if (blocks.free === blocks.total && sends.open === 0) break;
    }
  }
}
