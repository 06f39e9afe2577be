import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { waitUntilHealthy } from "../../../src/cli/ask.ts";
import { freePorts } from "../../../src/cli/ports.ts";
import { buildKvt, type KvtProcess, startKvt } from "../../integration/cli/kvt_process.ts";
import { type Resources, resourcesOf } from "../../integration/held_resources.ts";
import { tinyModel } from "../../integration/worker/worker_process.ts";

/** Smaller than what the prompts of a soak need together: blocks are waited for, and cached ones evicted. */
export const POOL_TOKENS = 4096;
const START_MS = 60_000;

export interface Part {
  readonly name: string;
  readonly url: string;
  readonly process: KvtProcess;
}

/** Two workers of each role and a router, each `kvt` as a process of its own. */
export class SoakDeployment implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), "kvt-soak-"));
  readonly parts: readonly Part[];

  private constructor(ports: readonly number[]) {
    const [routerPort = 0, ...workerPorts] = ports;
    const sockets = join(this.#folder, "sockets");
    mkdirSync(sockets, { mode: 0o700 });
    const config = join(this.#folder, "worker.yaml");
    const routerFile = join(this.#folder, "router.yaml");
    writeFileSync(
      config,
      `cache_transceiver_config:\n  backend: DEFAULT\nkv_cache_config:\n  max_tokens: ${POOL_TOKENS}\n`,
    );
    const list = (from: number): string =>
      workerPorts
        .slice(from, from + 2)
        .map((port) => `"localhost:${port}"`)
        .join(", ");
    writeFileSync(
      routerFile,
      `port: ${routerPort}\ncontext_servers: {urls: [${list(0)}]}\ngeneration_servers: {urls: [${list(2)}]}\n`,
    );
    const env = { KVT_SOCKET_DIR: sockets, KVT_CHECK: "1" };
    this.parts = ports.map((port, index): Part => {
      const role = index <= 2 ? "CONTEXT" : "GENERATION";
      const serve = ["serve", tinyModel, "--port", String(port), "--config", config, "--server_role", role];
      const argv = index === 0 ? ["disaggregated", "-c", routerFile, "-t", String(START_MS / 1000)] : serve;
      const name = index === 0 ? "router" : `${role.toLowerCase()} ${((index - 1) % 2) + 1}`;
      return { name, url: `http://localhost:${port}`, process: startKvt(argv, env) };
    });
  }

  static async start(): Promise<SoakDeployment> {
    buildKvt();
    const deployment = new SoakDeployment(await freePorts(5));
    for (const { url, name, process } of [...deployment.workers, deployment.router]) {
      if (await waitUntilHealthy(url, START_MS, 100)) continue;
      const output = process.output();
      await deployment[Symbol.asyncDispose]();
      throw new Error(`the ${name} did not become healthy:\n${output}`);
    }
    return deployment;
  }

  get router(): Part {
    return this.parts[0] as Part;
  }

  get workers(): readonly Part[] {
    return this.parts.slice(1);
  }

  get contexts(): readonly Part[] {
    return this.workers.slice(0, 2);
  }

  get generations(): readonly Part[] {
    return this.workers.slice(2);
  }

  resources(): readonly Resources[] {
    return this.parts.map(({ url, process }) => resourcesOf({ url, child: process.child }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { process } of this.parts) process.child.kill("SIGKILL");
    await Promise.all(this.parts.map(({ process }) => process.ended));
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
