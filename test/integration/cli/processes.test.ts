import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { ask, waitUntilHealthy } from "../../../src/cli/ask.ts";
import { freePorts } from "../../../src/cli/ports.ts";
import { buildKvt, type KvtProcess, startKvt } from "./kvt_process.ts";

beforeAll(buildKvt, 120_000);

const folder = mkdtempSync(join(tmpdir(), "kvt-processes-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const running: KvtProcess[] = [];
function kvt(...argv: string[]): KvtProcess {
  const started = startKvt(argv, { KVT_SOCKET_DIR: join(folder, "sockets") });
  running.push(started);
  return started;
}
afterEach(async () => {
  for (const { child } of running) child.kill("SIGKILL");
  const all = running.splice(0);
  await Promise.all(all.map(({ ended }) => ended));
  // No command needs the forced end of bin/kvt.js.
  for (const { output } of all) expect(output()).not.toContain("still open");
});

const model = "models/tiny.gguf";

function routerFile(port: number, context: number, generation: number): string {
  const path = join(folder, `${port}.yaml`);
  const text = `port: ${port}\ncontext_servers: {urls: ["localhost:${context}"]}\ngeneration_servers: {urls: ["localhost:${generation}"]}\n`;
  writeFileSync(path, text);
  return path;
}

describe("kvt as a process", () => {
  it("ends with 0 for help, 2 for mistakes, without a stack", async () => {
    const help = kvt("--help");
    expect(await help.ended).toBe(0);
    const mistake = kvt("serve", model, "--prot", "8000");
    expect(await mistake.ended).toBe(2);
    expect(mistake.output()).toContain("did you mean --port?");
    expect(mistake.output()).not.toContain("    at ");
  });

  it.each([
    ["serve", (port: number) => ["serve", model, "--port", String(port)]],
    ["disaggregated", (port: number) => ["disaggregated", "-c", routerFile(port, 1, 2)]],
  ])("%s ends with 4 when its port is taken", async (_command, argv) => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "localhost", resolve));
    const address = server.address();
    const taken = kvt(...argv(typeof address === "object" && address ? address.port : 0));
    expect(await taken.ended).toBe(4);
    expect(taken.output()).toContain("can't listen on localhost");
    server.close();
  });

  it("disaggregated ends with 3 when its workers do not come in time, and names them", async () => {
    const [port = 0, context = 0, generation = 0] = await freePorts(3);
    const router = kvt("disaggregated", "-c", routerFile(port, context, generation), "-t", "0.5");
    expect(await router.ended).toBe(3);
    expect(router.output()).toContain(`localhost:${context}`);
    expect(router.output()).toContain(`localhost:${generation}`);
  });

  it.each(["SIGTERM", "SIGINT"] as const)("a worker that gets %s ends with 0", async (signal) => {
    const [port = 0] = await freePorts(1);
    const worker = kvt(model, "--port", String(port), "--config", "examples/basic/ctx_config.yaml");
    expect(await waitUntilHealthy(`http://localhost:${port}`, 30_000, 50)).toBe(true);
    expect(worker.output()).toContain("examples/basic/ctx_config.yaml:6");
    worker.child.kill(signal);
    expect(await worker.ended).toBe(0);
  });

  describe("a worker in the middle of an answer", () => {
    const body = {
      model: "tiny",
      prompt: "Once upon a time",
      max_tokens: 600,
      temperature: 0,
      ignore_eos: true,
      stream: true,
    };

    async function answering(onFirstText: (worker: KvtProcess) => void) {
      const [port = 0] = await freePorts(1);
      const server = `http://localhost:${port}`;
      const worker = kvt(model, "--port", String(port));
      expect(await waitUntilHealthy(server, 30_000, 50)).toBe(true);
      let pieces = 0;
      const onText = (): void => {
        if (++pieces === 1) onFirstText(worker);
      };
      const usage = { stream_options: { include_usage: true } };
      const reply = ask({ server, endpoint: "completions", body: { ...body, ...usage }, onText });
      return { worker, reply };
    }

    it("finishes it after SIGTERM, then ends with 0", async () => {
      const { worker, reply } = await answering(({ child }) => child.kill("SIGTERM"));
      expect((await reply).usage?.completionTokens).toBe(600);
      expect(await worker.ended).toBe(0);
      expect(worker.output()).toContain("draining");
    });

    it("ends at once after a second signal", async () => {
      const { worker, reply } = await answering(async ({ child, said }) => {
        child.kill("SIGTERM");
        await said("draining");
        child.kill("SIGTERM");
      });
      await expect(reply).rejects.toThrow(/gave/);
      expect(await worker.ended).toBe(1);
    });
  });

  it("a router that gets SIGTERM while it waits for its workers ends with 0", async () => {
    const [port = 0, context = 0, generation = 0] = await freePorts(3);
    const router = kvt("disaggregated", "-c", routerFile(port, context, generation));
    await router.said("router listens");
    router.child.kill("SIGTERM");
    expect(await router.ended).toBe(0);
  });
});
