// How long the blocks of a request stay taken after its client has left: the client closes its connection to the router when the request
// has come to the step named by the case. Two workers and a router with the client, each a process, and real sockets.
import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { resolveRouter } from "../../dist/config/router_settings.js";
import { defaultWorkerSettings } from "../../dist/config/worker_settings.js";
import { createLogger } from "../../dist/observability/log.js";
import { startRouter } from "../../dist/router/server.js";

const ROUNDS = 100;
const model = fileURLToPath(new URL("../../models/tiny.gguf", import.meta.url));
const LONG = {
  prompt: Array.from({ length: 1024 }, (_, index) => 5 + (index % 300)),
  max_tokens: 1000,
  ignore_eos: true,
  temperature: 0,
  stream: true,
};

/** Case: the step of which worker the request has come to, and whose blocks are watched; of several the last to be free. */
const cases = {
  prefill: { at: ["context", "step"], frees: ["context"] },
  offered: { at: ["context", "DISAGG_CONTEXT_TRANS_IN_PROGRESS"], frees: ["context"] },
  granted: { at: ["generation", "READ"], frees: ["context"] },
  receiving: { at: ["generation", "READ"], frees: ["generation"] },
  verify: { at: ["generation", "VERIFY"], frees: ["context", "generation"] },
  retry: { at: ["generation", "RETRY"], frees: ["context", "generation"] },
  decode: { at: ["generation", "GENERATION_IN_PROGRESS"], frees: ["generation"] },
};

class Worker {
  url = "";
  #child;

  static async start(settings) {
    const worker = new Worker();
    worker.#child = fork(fileURLToPath(new URL("worker.mjs", import.meta.url)), [JSON.stringify(settings)]);
    worker.url = (await worker.said(({ url }) => url !== undefined)).url;
    return worker;
  }

  /** The next message like this. */
  said(isIt) {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("a worker does not say what is waited for")), 30_000);
      const listen = (message) => {
        if (!isIt(message)) return;
        clearTimeout(timer);
        child.off("message", listen);
        resolve(message);
      };
      child.on("message", listen);
    });
  }

  /** From now on it says when a request has come to `step`, and holds it there where it can. */
  async await(step) {
    const heard = this.said(({ awaits }) => awaits === step);
    this.#child.send({ step });
    await heard;
  }

  async close() {
    const exited = once(this.#child, "exit");
    this.#child.send({ close: true });
    await exited;
  }
}

export async function run(add, say) {
  const socketDir = mkdtempSync(join(tmpdir(), "kvt-bench-"));
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
    // So that there is something to compare in every round.
    transfer: { ...defaults.transfer, verify: "full" },
    kvCache: { ...defaults.kvCache, enableBlockReuse: false, maxTokens: 4096 },
    maxBatchSize: 1,
    socketDir,
  };
  const workers = { context: await Worker.start(settings), generation: await Worker.start(settings) };
  const group = ({ url }) => ({ servers: [{ url, origin: url }], policy: "round_robin" });
  const router = await startRouter(
    {
      ...resolveRouter({}).settings,
      host: "127.0.0.1",
      port: 0,
      context: group(workers.context),
      generation: group(workers.generation),
    },
    { log: createLogger({ name: "bench", level: "fatal" }) },
  );
  try {
    await router.ready;
    say(`${ROUNDS} clients a case; from the close of the client's connection to the release of the last block`);
    for (const [name, { at, frees }] of Object.entries(cases)) {
      const times = [];
      for (let round = 0; round < ROUNDS; round++) {
        times.push(await leave(router.url, workers, at, frees));
        await settled(Object.values(workers));
      }
      report(add, name, times);
    }
    report(add, "queued", await leaveQueue(workers.context, router));
  } finally {
    await router.close({ drainMs: 0 });
    await Promise.all(Object.values(workers).map((worker) => worker.close()));
    rmSync(socketDir, { recursive: true, force: true });
  }
}

function report(add, name, times) {
  times.sort((left, right) => left - right);
  const at = (part) => times[Math.floor(part * (times.length - 1))];
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

async function leave(url, workers, [side, step], frees) {
  const client = new AbortController();
  await workers[side].await(step);
  const reached = workers[side].said((message) => message.reached === step);
  const answer = ask(url, client.signal);
  await reached;
  const free = Promise.all(frees.map((name) => workers[name].said((message) => message.free === true)));
  const leftMs = performance.now();
  client.abort();
  await free;
  const ms = performance.now() - leftMs;
  await answer;
  return ms;
}

/** Behind a request that decodes. */
async function leaveQueue(context, router) {
  const times = [];
  const occupant = new AbortController();
  const occupy = async () => {
    while (!occupant.signal.aborted) await ask(context.url, occupant.signal);
  };
  const occupied = occupy();
  while (times.length < ROUNDS) {
    const client = new AbortController();
    const answer = ask(router.url, client.signal);
    while ((await waiting(context)) === 0);
    const free = context.said(({ freed }) => freed !== undefined);
    const leftMs = performance.now();
    client.abort();
    // Not one whose turn had come meanwhile, because the other was at its end.
    if ((await free).freed === "queued") times.push(performance.now() - leftMs);
    await answer;
  }
  occupant.abort();
  await occupied;
  return times;
}

const waiting = async ({ url }) =>
  Number(/kvt_worker_requests\{state="waiting"\} (\d+)/.exec(await (await fetch(`${url}/metrics`)).text())?.[1]);

async function settled(workers) {
  for (const { url } of workers) {
    for (;;) {
      const { blocks, sends } = await (await fetch(`${url}/kv/peers`)).json();
      if (blocks.free === blocks.total && sends.open === 0) break;
    }
  }
}
