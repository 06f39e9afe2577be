import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { waitUntilHealthy } from "../../../src/cli/ask.ts";
import { freePorts } from "../../../src/cli/ports.ts";
import { blockHash, prefixKeys } from "../../../src/worker/prefix_keys.ts";
import { buildKvt, type KvtProcess, startKvt } from "../cli/kvt_process.ts";
import { ask, post } from "./client.ts";
import { tinyModel } from "./worker_process.ts";

interface KvEvent {
  readonly id: number;
  readonly type: string;
  readonly hashes: readonly string[];
}

/** 64-bit numbers do not survive JSON.parse. */
const eventsOf = (text: string): KvEvent[] =>
  (
    JSON.parse(text.replace(/_hash(es)?":(\[[^\]]*\]|\d+)/g, (all) => all.replace(/\d{10,}/g, '"$&"'))) as {
      event_id: number;
      data: { type: string; blocks?: { block_hash: string }[]; block_hashes?: string[] };
    }[]
  ).map(({ event_id: id, data }) => ({
    id,
    type: data.type,
    hashes: data.block_hashes ?? data.blocks?.map(({ block_hash: hash }) => hash) ?? [],
  }));

describe("the KV events of kvt serve", () => {
  const folder = mkdtempSync(join(tmpdir(), "kvt-events-"));
  let worker: KvtProcess;
  let url: string;

  beforeAll(async () => {
    buildKvt();
    const config = join(folder, "worker.yaml");
    writeFileSync(config, "kv_cache_config: {event_buffer_max_size: 100, max_tokens: 256, tokens_per_block: 32}\n");
    const [port = 0] = await freePorts(1);
    url = `http://localhost:${port}`;
    worker = startKvt(["serve", tinyModel, "--port", String(port), "--config", config], { KVT_SOCKET_DIR: folder });
    expect(await waitUntilHealthy(url, 30_000, 50)).toBe(true);
  }, 120_000);
  afterAll(async () => {
    worker.child.kill("SIGTERM");
    expect(await worker.ended).toBe(0);
    rmSync(folder, { recursive: true, force: true });
  });

  const read = async (): Promise<KvEvent[]> => eventsOf(await post(url, "/kv_cache_events", ""));
  /** 96 prompt tokens, 8 output tokens of which 7 are evaluated: 3 full blocks. */
  const promptOf = (salt: number): number[] =>
    Array.from({ length: 96 }, (_, index) => 300 + ((index * 7 + salt) % 50));
  const complete = (salt: number) =>
    ask(url, "completion", { prompt: promptOf(salt), max_tokens: 8, temperature: 0, ignore_eos: true });
  const hashesOf = (salt: number): string[] =>
    prefixKeys(Uint32Array.from(promptOf(salt)), 32).map((key) => String(blockHash(key)));

  it("name what requests leave in the cache, and what makes room for others", async () => {
    // The token that start-up computes fills no block.
    expect(await read()).toEqual([{ id: 0, type: "created", hashes: [] }]);
    await complete(1);
    const first = (await read()).filter(({ type }) => type === "stored");
    expect(first.flatMap(({ hashes }) => hashes).slice(0, 3)).toEqual(hashesOf(1));
    expect((await complete(1)).cachedTokens).toBeGreaterThan(63);

    // 8 blocks in all: the third conversation does not fit beside the first two.
    await complete(2);
    await complete(3);
    const later = await read();
    const removed = later.filter(({ type }) => type === "removed").flatMap(({ hashes }) => hashes);
    expect(removed.some((hash) => hashesOf(1).includes(hash))).toBe(true);
    const ids = later.map(({ id }) => id);
    expect(ids).toEqual(ids.toSorted((a, b) => a - b));

    const known = new Set<string>();
    for (const { type, hashes } of [...first, ...later]) {
      for (const hash of hashes) type === "removed" ? known.delete(hash) : known.add(hash);
    }
    for (const hash of hashesOf(3)) expect(known).toContain(hash);
    const blocks = (await (await fetch(`${url}/metrics`)).text()).match(/kvt_worker_blocks\{state="cached"\} (\d+)/);
    expect(known.size).toBe(Number(blocks?.[1]));
    expect(await read()).toEqual([]);
  });
});
