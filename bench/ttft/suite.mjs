// What disaggregation costs until the first token: the same request through the same router to one worker, and to a pair of workers.
import { fork } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Pool } from "undici";
import { smolLm2 } from "../../scripts/smollm2.mjs";
import { median, quantile } from "../statistics.mjs";
import { addParts } from "./parts.mjs";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const ROUNDS = 20;
const WARM_UP = 3;

/** KVT_BENCH_MODEL: "tiny" (default) or "smollm2", which takes a quarter of an hour. */
export async function run(add, say) {
  const model = chosenModel(say);
  if (model === undefined) return;
  const socketDir = mkdtempSync(join(tmpdir(), "kvt-bench-"));
  const children = [];
  const start = (script, ...args) => {
    const child = fork(here(script), args, { stdio: ["ignore", "inherit", "inherit", "ipc"] });
    children.push(child);
    return new Promise((resolve, reject) => {
      child.once("message", ({ port }) => resolve(String(port)));
      child.once("exit", (code) => reject(new Error(`${script} ended (${code})`)));
    });
  };
  try {
    say(
      "one engine thread a worker; each way through a router of its own, in turns; no prefix reuse; token ids as prompt",
    );
    const workers = [];
    for (let i = 0; i < 3; i++) workers.push(await start("./worker.mjs", model, socketDir));
    const [context, generation, both] = workers;
    const routers = {
      aggregated: await start("../router/router.mjs", "", both),
      "context-first": await start("../router/router.mjs", context, generation),
      "generation-first": await start("../router/router.mjs", context, generation, "generation_first"),
    };
    for (const tokens of [1000, 1900]) {
      const times = await measure(add, say, routers, tokens);
      await addParts(add, `prompt-${tokens}`, times, [context, both]);
    }
  } finally {
    for (const child of children) child.kill("SIGKILL");
    rmSync(socketDir, { recursive: true, force: true });
  }
}

function chosenModel(say) {
  if (process.env.KVT_BENCH_MODEL !== "smollm2") return here("../../models/tiny.gguf");
  const smol = smolLm2();
  if ("missing" in smol) say(`SmolLM2 is not measured: ${smol.missing}`);
  return smol.file;
}

async function measure(add, say, routers, tokens) {
  const pools = Object.entries(routers).map(([way, port]) => [
    way,
    new Pool(`http://127.0.0.1:${port}`, { connections: 1 }),
  ]);
  const times = Object.fromEntries(pools.map(([way]) => [way, []]));
  const seconds = Object.fromEntries(pools.map(([way]) => [way, []]));
  const byRequest = new Map();
  for (let round = -WARM_UP; round < ROUNDS; round++) {
    // Whoever comes first after a pause has it harder, so the order turns.
    for (let i = 0; i < pools.length; i++) {
      const [way, pool] = pools[(round + WARM_UP + i) % pools.length];
      const id = `${way}-${tokens}-${round}`;
      const { ms, secondMs } = await firstTokens(pool, tokens, round + WARM_UP, id);
      if (round < 0) continue;
      times[way].push(ms);
      seconds[way].push(secondMs);
      byRequest.set(id, ms);
    }
  }
  for (const [, pool] of pools) await pool.close();
  const name = `prompt-${tokens}`;
  for (const [way, all] of Object.entries(times)) {
    const spread = [0, 0.25, 0.5, 0.75, 1].map((share) => quantile(all, share).toFixed(1));
    say(`${name} ${way}: ${spread.join(" ")} ms (least, quartiles, most)`);
    add(name, `ttft_ms ${way}`, median(all), "ms");
    add(name, `second_token_ms ${way}`, median(seconds[way]), "ms");
  }
  for (const way of ["context-first", "generation-first"]) {
    add(name, `ttft_ratio ${way}`, median(times[way]) / median(times.aggregated), "");
    add(name, `second_token_ratio ${way}`, median(seconds[way]) / median(seconds.aggregated), "");
  }
  return byRequest;
}

/** Milliseconds from the request to the first event of its stream, which holds token 0, and to the second one, with token 1. */
async function firstTokens(pool, tokens, salt, id) {
  const prompt = Array.from({ length: tokens }, (_, at) => 300 + ((at * 7 + salt * 13) % 200));
  const body = JSON.stringify({ prompt, stream: true, max_tokens: 2, temperature: 0, ignore_eos: true });
  const began = performance.now();
  const answer = await pool.request({
    method: "POST",
    path: "/v1/completions",
    headers: { "content-type": "application/json", "x-request-id": id },
    body,
  });
  let ms;
  let secondMs;
  let text = "";
  for await (const piece of answer.body) {
    text += piece;
    ms ??= performance.now() - began;
    if (text.split("data: ").length > 2) secondMs ??= performance.now() - began;
  }
  if (answer.statusCode !== 200 || !text.includes("[DONE]")) throw new Error(`${answer.statusCode} ${text}`);
  return { ms, secondMs };
}
