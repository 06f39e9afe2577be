// What the router costs: a request straight to a worker that computes nothing, and the same through the router.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Pool } from "undici";

const COUNT = 1_500;
const WARM_UP = 300;
const EVENTS = 40_000;
/** Limits of what normally takes a second or a few, for a machine that is busy with other things. */
const START_LIMIT_MS = 60_000;
const CALLS_LIMIT_MS = 120_000;
const STREAM_LIMIT_MS = 120_000;

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

/** Starts a script of this folder and waits for its first message. */
function start(script, ...args) {
  const child = fork(here(script), args, { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  const started = new Promise((resolve, reject) => {
    child.once("message", (message) => resolve({ child, ...message }));
    child.once("error", reject);
    child.once("exit", (code, signal) => reject(new Error(`${script} ended (${code ?? signal})`)));
  });
  return within(`${script} to start`, START_LIMIT_MS, () => started).catch((error) => {
    child.kill("SIGKILL");
    throw error;
  });
}

/** Runs `work` with a signal that ends it after `limitMs`, and says then what was waited for. */
async function within(what, limitMs, work) {
  const limit = new AbortController();
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => {
      const error = new Error(`waited ${limitMs / 1000} s for ${what}`);
      limit.abort(error);
      reject(error);
    }, limitMs);
  });
  try {
    return await Promise.race([work(limit.signal), late]);
  } finally {
    clearTimeout(timer);
  }
}

export async function run(add, say) {
  const children = [];
  const begin = async (...args) => {
    const started = await start(...args);
    children.push(started.child);
    return started;
  };
  try {
    const context = await begin("./upstream.mjs");
    const generation = await begin("./upstream.mjs");
    const relay = await begin("./router.mjs", "", String(generation.port));
    const pair = await begin("./router.mjs", String(context.port), String(generation.port));
    say("worker: answers at once; relay: router with one worker; context-first: router with two, two hops");
    const targets = { worker: generation.port, relay: relay.port, "context-first": pair.port };
    const p50 = {};
    for (const [name, port] of Object.entries(targets)) {
      const alone = await requests(name, port, 1);
      p50[name] = alone.p50;
      add(name, "call_us_p50", alone.p50, "us");
      add(name, "call_us_p99", alone.p99, "us");
      add(name, "requests_per_s_16", (await requests(name, port, 16)).perSecond, "1/s");
      add(name, "stream_mb_per_s", await stream(name, port, generation.eventBytes), "MB/s");
    }
    add("relay", "overhead_us_p50", p50.relay - p50.worker, "us");
    add("context-first", "overhead_us_p50", p50["context-first"] - 2 * p50.worker, "us");
  } finally {
    for (const child of children) child.kill("SIGKILL");
  }
}

const headers = { "content-type": "application/json" };
const body = JSON.stringify({ model: "m", prompt: "word ".repeat(250), max_tokens: 64 });

async function requests(name, port, atOnce) {
  const what = `${WARM_UP + COUNT} calls of ${name}, ${atOnce} at a time`;
  return within(what, CALLS_LIMIT_MS, (signal) => measureRequests(port, atOnce, signal));
}

async function measureRequests(port, atOnce, signal) {
  const pool = new Pool(`http://127.0.0.1:${port}`, { connections: atOnce });
  // Once for all calls: a signal with each would be part of what is measured.
  signal.addEventListener("abort", () => void pool.destroy(signal.reason));
  const times = [];
  const ask = async () => {
    const began = performance.now();
    const answer = await pool.request({ method: "POST", path: "/v1/completions", headers, body });
    const text = await answer.body.text();
    if (answer.statusCode !== 200) throw new Error(`${answer.statusCode} ${text}`);
    times.push((performance.now() - began) * 1000);
  };
  const many = async (count) => {
    let left = count;
    await Promise.all(
      Array.from({ length: atOnce }, async () => {
        while (left-- > 0) await ask();
      }),
    );
  };
  let seconds = 0;
  try {
    await many(WARM_UP);
    times.length = 0;
    const began = performance.now();
    await many(COUNT);
    seconds = (performance.now() - began) / 1000;
  } finally {
    await pool.destroy();
  }
  times.sort((a, b) => a - b);
  const at = (part) => times[Math.floor(part * (times.length - 1))];
  return { p50: at(0.5), p99: at(0.99), perSecond: COUNT / seconds };
}

async function stream(name, port, eventBytes) {
  const what = `${EVENTS} events through ${name}`;
  return within(what, STREAM_LIMIT_MS, (signal) => measureStream(port, eventBytes, signal));
}

async function measureStream(port, eventBytes, signal) {
  const pool = new Pool(`http://127.0.0.1:${port}`, { connections: 1 });
  signal.addEventListener("abort", () => void pool.destroy(signal.reason));
  const began = performance.now();
  let bytes = 0;
  let seconds = 0;
  try {
    const answer = await pool.request({
      method: "POST",
      path: "/v1/completions",
      headers,
      body: JSON.stringify({ model: "m", prompt: "x", stream: true, events: EVENTS }),
    });
    for await (const piece of answer.body) bytes += piece.length;
    seconds = (performance.now() - began) / 1000;
  } finally {
    await pool.destroy();
  }
  if (bytes < EVENTS * eventBytes) throw new Error(`the stream was cut: ${bytes} bytes`);
  return bytes / seconds / 1e6;
}
