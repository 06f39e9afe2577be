import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { main } from "../../../src/cli/main.ts";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { capturedTerminal } from "../../unit/cli/captured_terminal.ts";
import { resourcesOf } from "../held_resources.ts";
import { until } from "../waits.ts";
import { blocksOf } from "../worker/inspect.ts";
import { tinyModel, type WorkerProcess, Workers } from "../worker/worker_process.ts";

interface Piece {
  readonly pieceBytes: number;
  readonly latencyUs: number;
  readonly moveUs: number;
  readonly gbPerS: number;
}

const { kvCache } = defaultWorkerSettings(tinyModel);
// No NIXL is looked for: these tests are about the pair.
const noNixl = { PATH: process.env.PATH, KVT_NIXL_LIBRARY: "" };

async function doctor(peers: readonly string[], env: Record<string, string> = {}, ...more: string[]) {
  const terminal = capturedTerminal({ ...noNixl, ...env });
  const code = await main(["doctor", ...peers.flatMap((peer) => ["--peer", peer]), ...more], terminal);
  return { code, out: terminal.out(), err: terminal.err() };
}

async function pairOf(peers: readonly string[], env: Record<string, string> = {}) {
  const { code, out } = await doctor(peers, env, "--json");
  const { pair, problems } = JSON.parse(out);
  return { code, pair, problems: problems as string[] };
}

describe("kvt doctor --peer --peer, with two running workers", () => {
  const workers = new Workers();
  let source: WorkerProcess;
  let reader: WorkerProcess;
  const hostPort = ({ url }: WorkerProcess): string => new URL(url).host;
  beforeAll(async () => {
    [source, reader] = await Promise.all([workers.start(), workers.start()]);
  }, 60_000);
  afterAll(() => workers[Symbol.asyncDispose]());

  it("says that their layouts fit, which path they take and why, and what it moves at three piece sizes", async () => {
    const { code, pair, problems } = await pairOf([hostPort(source), hostPort(reader)]);
    expect([code, problems]).toEqual([0, []]);
    expect(pair).toMatchObject({
      source: { url: source.url, model: "tiny" },
      reader: { url: reader.url },
      layout: { fits: true, differences: "", notes: [] },
      chosen: "shared_memory",
      paths: [{ name: "shared_memory", chosen: true, usable: true, why: expect.stringContaining("could map") }],
    });
    expect(pair.places.source.pid).toBe(source.child.pid);
    expect(pair.places.reader.pid).toBe(reader.child.pid);
    const measured = pair.paths[0].measured as Piece[];
    expect(measured.map(({ pieceBytes }) => pieceBytes)).toEqual([4096, 65_536, 1_048_576]);
    for (const { latencyUs, moveUs, gbPerS } of measured) {
      expect(gbPerS).toBeGreaterThan(0.05);
      expect(gbPerS).toBeLessThan(2_000);
      expect(moveUs).toBeGreaterThan(0);
      expect(latencyUs).toBeGreaterThan(moveUs);
    }
  }, 60_000);

  it("leaves the workers as they were: no block, no transfer, no mapping and no file of the probe stays", async () => {
    const before = [source, reader].map(resourcesOf);
    const blocks = await Promise.all([source, reader].map(blocksOf));
    await pairOf([hostPort(reader), hostPort(source)]);
    await until("no mapping and no file is left", async () => {
      const after = [source, reader].map(resourcesOf);
      return after.every(({ pools, descriptors }, at) => {
        const was = before[at];
        return pools === was?.pools && descriptors <= was.descriptors;
      });
    });
    expect(await Promise.all([source, reader].map(blocksOf))).toEqual(blocks);
    expect(blocks[0]?.free).toBe(blocks[0]?.total);
  }, 60_000);

  it("prints the same for a reader", async () => {
    const { code, out } = await doctor([source.url, reader.url]);
    expect(code).toBe(0);
    expect(out).toMatch(/\npair\n {2}is read +http.*both roles, tiny/);
    expect(out).toMatch(/places +one machine; namespaces all shared/);
    expect(out).toMatch(/✓ shared_memory taken: one machine/);
    expect(out).toMatch(
      / {6}64 KiB +\d+\.\d\d GB\/s {3}one piece alone: \d+ µs from call to end, \d+ µs of it copying/,
    );
  }, 60_000);

  it("names what differs: harmless sizes as notes, a dtype as a problem and exit code 1", async () => {
    const other = await workers.start({
      kvCache: { ...kvCache, dtype: "bf16", tokensPerBlock: 16, maxTokens: 1024 },
      role: "CONTEXT",
    });
    const generation = await workers.start({ role: "GENERATION" });
    const { code, pair, problems } = await pairOf([hostPort(generation), hostPort(other)]);
    expect(code).toBe(1);
    expect(problems).toEqual([
      expect.stringMatching(/KV can't move between the two workers: dtype here \S+, there \S+/),
    ]);
    expect(pair.layout).toMatchObject({ fits: false, notes: ["tokens per block 16 and 32"] });
    // Prefill is read by decode, whichever is named first.
    expect(pair.source.url).toBe(other.url);
    expect(pair.reader.url).toBe(generation.url);
    await Promise.all([other.stop(), generation.stop()]);
  }, 60_000);

  it("finds the socket of a worker with a directory of its own, and names one that is gone", async () => {
    await using elsewhere = new Workers();
    const apart = await elsewhere.start();
    const { code, pair, problems } = await pairOf([hostPort(source), hostPort(apart)]);
    expect(code).toBe(0);
    // The directory of the source's socket is part of its descriptor: one that this user may enter is found.
    expect(pair.chosen).toBe("shared_memory");
    expect(problems).toEqual([]);
    const gone = hostPort(apart);
    await apart.kill();
    const lost = await pairOf([hostPort(source), gone]);
    expect(lost).toMatchObject({ code: 1, problems: [expect.stringContaining(`http://${gone} gave no answer`)] });
    expect(lost.pair).toBeUndefined();
  }, 60_000);

  it("needs the cluster's token where there is one", async () => {
    const guarded = await Promise.all([1, 2].map(() => workers.start({ authToken: "s3cret" })));
    const peers = guarded.map(hostPort);
    const refused = await pairOf(peers, { KVT_AUTH_TOKEN: "wrong" });
    expect(refused.code).toBe(1);
    expect(refused.problems.join()).toMatch(/POST \/kv\/probe needs the bearer token of KVT_AUTH_TOKEN/);
    expect(await pairOf(peers, { KVT_AUTH_TOKEN: "s3cret" })).toMatchObject({ code: 0, problems: [] });
    await Promise.all(guarded.map((worker) => worker.stop()));
  }, 60_000);

  it("is served one at a time, refuses what is no probe, and a worker that stops ends it", async () => {
    const stopped = await workers.start();
    const call = (method: string, path: string, body: unknown): Promise<Response> =>
      fetch(`${stopped.url}${path}`, {
        method,
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
    const opened = await call("POST", "/kv/probe", { path: null });
    expect(opened.status).toBe(200);
    const { offers } = (await opened.json()) as { offers: { pieces: { bulk: string[] }[] } };
    const second = await call("POST", "/kv/probe", { path: null });
    expect([second.status, await second.json()]).toMatchObject([409, { error: { code: "probe_runs" } }]);
    expect((await call("POST", "/kv/probe", { path: "carrier_pigeon" })).status).toBe(400);
    expect((await call("POST", "/kv/probe/read", { path: null, offers: { pieces: [] } })).status).toBe(400);
    const forged = { pieces: [{ ...offers.pieces[0], bulk: ["AAAA", "AAAA"] }] };
    const bad = await call("POST", "/kv/probe/read", { path: null, offers: forged });
    expect([bad.status, await bad.json()]).toMatchObject([400, { error: { code: "bad_state" } }]);
    expect(await stopped.stop()).toBe(0);
  }, 60_000);
});

describe("kvt doctor", () => {
  it.each([
    [["--peer", "a:1"], "--peer is given once: name both workers of the pair"],
    [["--peer", "a:1", "--peer", "b:2", "--peer", "c:3"], "--peer is given 3 times, 2 at most"],
    [["--peer", "a:1", "--peer", "ftp://b"], "--peer ftp://b is no HOST:PORT of a worker"],
    [["--peer", "a:1", "--peer", "b:2/v1"], "--peer b:2/v1 is no HOST:PORT of a worker"],
  ])("%j is a mistake of the command line", async (argv, words) => {
    const terminal = capturedTerminal(noNixl);
    expect(await main(["doctor", ...argv], terminal)).toBe(2);
    expect(terminal.err()).toContain(words);
  });
});
