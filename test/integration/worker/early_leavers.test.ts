import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, describe, expect, it } from "vitest";
import { until } from "../waits.ts";
import { ask, type Body } from "./client.ts";
import { blocksOf } from "./inspect.ts";
import { poolWithoutReuse } from "./no_leak.ts";
import { type WorkerProcess, Workers } from "./worker_process.ts";

const CLIENTS = 20;
const body: Body = { prompt: [5, 6, 7, 8], max_tokens: 4, disaggregated_params: { request_type: "context_only" } };

/** Writes a whole request, and goes before the worker, which is stopped, has read a byte of it. */
async function askAndLeave({ url }: WorkerProcess): Promise<void> {
  const text = JSON.stringify(body);
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  await once(socket, "connect");
  const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${text.length}\r\n\r\n`;
  await new Promise((resolve) => socket.write(head + text, resolve));
  socket.destroy();
  await once(socket, "close");
}

/** Statuses of context requests, from the worker's log. */
const answered = (worker: WorkerProcess): number[] =>
  worker
    .log()
    .split("\n")
    .flatMap((line) => (line.includes('"role":"context"') ? [(JSON.parse(line) as { status: number }).status] : []));

describe("clients that have left before the worker reads their requests", () => {
  const workers = new Workers();
  afterAll(() => workers[Symbol.asyncDispose]());

  it("leave no offer behind", async () => {
    const worker = await workers.start(poolWithoutReuse);
    worker.child.kill("SIGSTOP");
    for (let i = 0; i < CLIENTS; i++) await askAndLeave(worker);
    worker.child.kill("SIGCONT");
    await ask(worker.url, "completion", { prompt: [5, 6, 7], max_tokens: 40, ignore_eos: true });
    // Every one of them has been looked at, and none was answered.
    await until("all have been looked at", async () => answered(worker).length === CLIENTS);
    expect(answered(worker)).toEqual(Array(CLIENTS).fill(499));
    const { free, total, sends } = await blocksOf(worker);
    expect([free, sends.open]).toEqual([total, 0]);
  });
});
