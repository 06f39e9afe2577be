import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type Deployed, type DeployOptions, deploy } from "../e2e/deployed.ts";
import { ask } from "../integration/worker/client.ts";
import { goldens } from "../integration/worker/golden.ts";
import { expectGolden } from "../integration/worker/golden_check.ts";
import { DEVICE, Namespaces, type Place } from "./namespaces.ts";
import { type NixlCase, nixlCases } from "./nixl_wheel.ts";

interface Moved {
  readonly event: string;
  readonly direction?: string;
  readonly path?: string;
  readonly bytes?: number;
  readonly nixl?: Readonly<Record<"posts" | "post_ms" | "transfer_ms" | "descriptors" | "bytes", number>>;
}

/** A context and a generation worker of one case, or none where it can't be tested here. */
function deployPair({ env, missing }: NixlCase, options: Partial<DeployOptions>): () => Deployed {
  let deployed: Deployed | undefined;
  beforeAll(async () => {
    const talking = { ...env, KVT_LOG_LEVEL: "debug" };
    if (missing === undefined) deployed = await deploy({ context: 1, generation: 1, env: talking, ...options });
  }, 240_000);
  afterAll(async () => {
    await deployed?.[Symbol.asyncDispose]();
  });
  beforeEach(({ skip }) => {
    if (missing !== undefined) skip(missing);
  });
  return () => deployed as Deployed;
}

/** What the generation worker has fetched for one request. */
async function movedFor({ generation }: Deployed, id: string): Promise<readonly Moved[]> {
  const reply = await fetch(`${generation[0]?.url}/kv/transfers?request_id=${id}`);
  const { records } = (await reply.json()) as { records: Moved[] };
  return records.filter(({ event, bytes = 0 }) => event === "transfer" && bytes > 0);
}

const cases = nixlCases();
const styles = cases.flatMap((one) => [
  { ...one, style: "context_first" as const },
  ...(one.name.endsWith("shared memory") ? [{ ...one, style: "generation_first" as const }] : []),
]);

describe.each(styles)("golden answers over $name, $style", ({ style, ...one }) => {
  const deployed = deployPair(one, { settings: { scheduleStyle: style } });

  it("are right token for token, and their KV came that way", async () => {
    for (const golden of goldens) {
      const id = randomUUID();
      expectGolden(await ask(deployed().router.url, golden.kind, { ...golden.body }, { id }), golden);
      const moved = await movedFor(deployed(), id);
      expect(moved.map(({ path }) => path)).toEqual(moved.map(() => one.env.KVT_PATH));
      expect(moved.length).toBeGreaterThan(0);
      for (const { bytes, nixl } of moved.filter(({ direction }) => direction === "receive")) {
        // Staged, whole blocks travel.
        if (one.env.KVT_PATH === "nixl_direct") expect(nixl?.bytes).toBe(bytes);
        else expect(nixl?.bytes).toBeGreaterThanOrEqual(bytes ?? Number.POSITIVE_INFINITY);
        expect(nixl?.descriptors).toBeGreaterThanOrEqual(nixl?.posts ?? Number.POSITIVE_INFINITY);
        expect(nixl?.transfer_ms).toBeGreaterThanOrEqual(nixl?.post_ms ?? Number.POSITIVE_INFINITY);
      }
    }
  }, 240_000);

  it("are logged, one line a transfer at level debug, and counted by path, with NIXL's own telemetry", async () => {
    const { KVT_PATH: path } = one.env;
    const [generation] = deployed().generation;
    const reply = await fetch(`${generation?.url}/kv/transfers`);
    const { records } = (await reply.json()) as { records: (Moved & { request_id: string })[] };
    const known = records.filter(({ event, direction }) => event === "transfer" && direction === "receive");
    const logged = (generation?.log() ?? "")
      .split("\n")
      .filter((line) => line.includes('"msg":"transfer"'))
      .map((line) => JSON.parse(line) as (typeof known)[number])
      .filter(({ direction }) => direction === "receive");
    expect(known.length).toBeGreaterThan(0);
    expect(logged.map(({ request_id }) => request_id)).toEqual(known.map(({ request_id }) => request_id));
    for (const [at, { bytes, nixl }] of known.entries()) expect(logged[at]).toMatchObject({ bytes, nixl });
    expect(logged.filter(({ nixl }) => nixl !== undefined).map((moved) => moved.path)).toContain(path);
    const text = await (await fetch(`${generation?.url}/metrics`)).text();
    const counted = (series: string): number =>
      Number(
        text
          .split("\n")
          .find((line) => line.startsWith(`${series} `))
          ?.slice(series.length),
      );
    const bytes = counted(`kvt_worker_path_bytes_total{direction="receive",path="${path}"}`);
    expect(bytes).toBeGreaterThan(0);
    expect(bytes).toBe(counted('kvt_worker_transfer_bytes_total{direction="receive"}'));
    expect(counted(`kvt_worker_path_moving_seconds_total{path="${path}"}`)).toBeGreaterThan(0);
    const posts = counted(`kvt_worker_nixl_parts_total{path="${path}",unit="post"}`);
    expect(posts).toBeGreaterThan(0);
    expect(counted(`kvt_worker_nixl_parts_total{path="${path}",unit="descriptor"}`)).toBeGreaterThanOrEqual(posts);
    expect(counted(`kvt_worker_nixl_seconds_total{path="${path}",phase="transfer"}`)).toBeGreaterThan(0);
  });
});

const opened = await Namespaces.open();
const namespaces = typeof opened === "string" ? undefined : opened;
afterAll(() => namespaces?.[Symbol.asyncDispose]());
const overNetwork = cases
  .filter(({ name }) => /TCP|tcp/.test(name))
  .map(
    (one): NixlCase => ({
      ...one,
      // UCX would take the loopback devices of two namespaces for one.
      env: { ...one.env, UCX_NET_DEVICES: DEVICE, FI_TCP_IFACE: DEVICE },
      ...(typeof opened === "string" ? { missing: opened } : {}),
    }),
  );

describe.each(overNetwork)("golden answers between two network namespaces over $name", (one) => {
  const placeOf = (place: Place) => ({
    entry: namespaces?.entry(place) ?? [],
    address: namespaces?.address(place) ?? "",
  });
  const deployed = deployPair(one, { places: { context: placeOf("context"), generation: placeOf("generation") } });

  it("are right token for token, and their KV came that way", async () => {
    for (const golden of goldens) {
      const id = randomUUID();
      expectGolden(await ask(deployed().router.url, golden.kind, { ...golden.body }, { id }), golden);
      const moved = await movedFor(deployed(), id);
      expect(moved.length).toBeGreaterThan(0);
      expect(moved.map(({ path }) => path)).toEqual(moved.map(() => one.env.KVT_PATH));
    }
  }, 240_000);
});

const staged = cases.filter(({ name }) => /^nixl_staged over (UCX's TCP|LIBFABRIC)/.test(name));
const buffers = staged.flatMap((one) => [32, 2048].map((bufferTokens) => ({ ...one, bufferTokens })));

describe.each(buffers)(
  "a prompt of 1,900 tokens over $name, $bufferTokens tokens a slot",
  ({ bufferTokens, ...one }) => {
    const deployed = deployPair(one, { bufferTokens });

    it("is answered as one worker alone answers it", async () => {
      const prompt = Array.from({ length: 1900 }, (_, at) => 300 + ((at * 7) % 300));
      const body = { prompt, max_tokens: 24, temperature: 0, ignore_eos: true };
      const id = randomUUID();
      const both = await ask(deployed().router.url, "completion", body, { id });
      const alone = await ask(deployed().context[0]?.url ?? "", "completion", body);
      expect(both.text).toBe(alone.text);
      const moved = await movedFor(deployed(), id);
      expect(moved.map(({ path }) => path)).toEqual(moved.map(() => "nixl_staged"));
    }, 240_000);
  },
);
