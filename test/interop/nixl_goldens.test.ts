import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Deployed, deploy } from "../e2e/deployed.ts";
import { ask } from "../integration/worker/client.ts";
import { goldens } from "../integration/worker/golden.ts";
import { expectGolden } from "../integration/worker/golden_check.ts";
import { bringNixl } from "./nixl_wheel.ts";

const brought = bringNixl("1.5.1");
const library = "library" in brought ? brought.library : "";
const without = library === "" ? " (skipped: NIXL can't be brought here)" : "";

interface Moved {
  readonly event: string;
  readonly path?: string;
  readonly bytes?: number;
}

describe.skipIf(library === "").each([
  ["shared memory", "context_first", {}],
  ["shared memory", "generation_first", {}],
  ["TCP", "context_first", { UCX_TLS: "tcp" }],
] as const)(`golden answers over nixl_direct and UCX's %s, %s${without}`, (_transport, scheduleStyle, env) => {
  let deployed: Deployed;
  beforeAll(async () => {
    const nixl = { KVT_NIXL_LIBRARY: library, KVT_PATH: "nixl_direct", ...env };
    deployed = await deploy({ context: 1, generation: 1, settings: { scheduleStyle }, env: nixl });
  }, 240_000);
  afterAll(async () => {
    await deployed?.[Symbol.asyncDispose]();
  });

  it("are right token for token, and their KV came through NIXL", async () => {
    const [generation] = deployed.generation;
    for (const golden of goldens) {
      const id = randomUUID();
      expectGolden(await ask(deployed.router.url, golden.kind, { ...golden.body }, { id }), golden);
      const reply = await fetch(`${generation?.url}/kv/transfers?request_id=${id}`);
      const { records } = (await reply.json()) as { records: Moved[] };
      const moved = records.filter(({ event, bytes = 0 }) => event === "transfer" && bytes > 0);
      expect(moved.map(({ path }) => path)).toEqual(moved.map(() => "nixl_direct"));
      expect(moved.length).toBeGreaterThan(0);
    }
  }, 240_000);
});
