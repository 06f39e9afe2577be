import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";
import { tokenizerOf, writeRandomLlama } from "../engine/gguf_writer.ts";
import { ask, Refused } from "../worker/client.ts";
import { tinyModel, type WorkerProcess, Workers, withoutReuse } from "../worker/worker_process.ts";
import { errorOf, route } from "./routed.ts";
import { ScriptedWorker } from "./scripted_worker.ts";
import { metric, startRouterFor } from "./workers_here.ts";

const layout = {
  layers: 5,
  kvHeads: 2,
  headDim: 32,
  dtype: "f32",
  tokensPerBlock: 32,
  attention: "gqa",
  tpSize: 1,
  ppSize: 1,
};

async function scripted(kvLayout: object | null): Promise<ScriptedWorker> {
  const worker = await new ScriptedWorker().listen();
  worker.info = {
    ...worker.info,
    kv_layout: kvLayout,
    disaggregated_params: { ctx_info_endpoint: ["127.0.0.1:1"] },
  };
  return worker;
}

const hops = (worker: ScriptedWorker): string[] => worker.requests.map(({ hop }) => hop);

describe.each(["context_first", "generation_first"] as const)("pairs of scripted workers, %s", (scheduleStyle) => {
  const settings = { scheduleStyle };

  it("that differ are refused with every field named, before anything is sent", async () => {
    const other = { ...layout, layers: 4, dtype: "bf16", tokensPerBlock: 64, tpSize: 2 };
    const [context, generation] = [await scripted(layout), await scripted(other)];
    await using routed = await route({ context: [context], generation: [generation], settings });
    const response = await routed.complete();
    expect([response.status, response.headers.get("retry-after")]).toEqual([503, "1"]);
    const error = await errorOf(response);
    expect(error.code).toBe("no_compatible_pair");
    expect(error.message).toContain("layers here 5, there 4; dtype here f32, there bf16");
    expect(error.message).not.toContain("tokensPerBlock");
    expect([...hops(context), ...hops(generation)]).toEqual([]);
    const info = (await (await fetch(`${routed.router.url}/cluster_info`)).json()) as { incompatible_pairs: unknown[] };
    expect(info.incompatible_pairs).toEqual([
      expect.objectContaining({ context: context.address.url, generation: generation.address.url }),
    ]);
    expect(routed.log.filter(({ msg }) => msg === "workers that KV can't move between")).toHaveLength(1);
  });

  it("are judged however their layers are spread over stages", async () => {
    const spread = { ...layout, tpSize: 2, ppSize: 2, pipeline: [3, 2] };
    for (const [other, status] of [
      [spread, 200],
      [{ ...spread, dtype: "bf16" }, 503],
    ] as const) {
      const [context, generation] = [await scripted(layout), await scripted(other)];
      await using routed = await route({ context: [context], generation: [generation], settings });
      expect((await routed.complete()).status).toBe(status);
    }
  });

  it.each([
    [{ attention: "mla", kvHeads: 1 }, "kvHeads here 2, there 1; attention here mha or gqa, there mla"],
    [{ groups: [{ name: "kv", kind: "kv", window: 4096 }] }, "groups.kv.window here none, there 4096"],
    [
      {
        groups: [
          { name: "kv", kind: "kv" },
          { name: "scales", kind: "scales", bytesPerToken: 16 },
        ],
      },
      "groups.scales.kind here none, there scales",
    ],
  ])("of which one has %j instead are refused before anything is sent", async (change, words) => {
    const [context, generation] = [await scripted(layout), await scripted({ ...layout, ...change })];
    await using routed = await route({ context: [context], generation: [generation], settings });
    const error = await errorOf(await routed.complete());
    expect([error.code, error.message]).toEqual(["no_compatible_pair", expect.stringContaining(words)]);
    expect([...hops(context), ...hops(generation)]).toEqual([]);
  });

  it("are judged with their groups and stages, and with their ranks where opaque bytes bind them", async () => {
    const groups = [
      { name: "kv", kind: "kv" },
      { name: "state", kind: "opaque", bytesPerToken: 8 },
    ];
    const [context, generation] = [
      await scripted({ ...layout, groups }),
      await scripted({ ...layout, groups, tpSize: 2, ppSize: 2, pipeline: [4, 1], dpRank: 0 }),
    ];
    await using routed = await route({ context: [context], generation: [generation], settings });
    const error = await errorOf(await routed.complete());
    expect(error.code).toBe("no_compatible_pair");
    expect(error.message).toContain("tpSize here 1, there 2; ppSize here 1, there 2; pipeline here even, there [4,1]");
  });

  it("are chosen so that they fit", async () => {
    const small = { ...layout, layers: 4 };
    const contexts = await Promise.all([layout, small].map(scripted));
    const generations = await Promise.all([small, layout, { ...layout, headDim: 64 }].map(scripted));
    await using routed = await route({ context: contexts, generation: generations, settings });
    for (let number = 0; number < 12; number++) {
      const sent = [...contexts, ...generations].map((worker) => worker.requests.length);
      expect((await routed.complete()).status).toBe(200);
      const [a, b, c, d, e] = [...contexts, ...generations].map(
        (worker, index) => worker.requests.length - (sent[index] ?? 0),
      );
      expect([a, b, e]).toEqual([d, c, 0]);
    }
    for (const worker of [...contexts, ...generations.slice(0, 2)]) expect(worker.requests.length).toBeGreaterThan(2);
  });

  it("of which one says nothing, or more than this version knows, are not judged", async () => {
    for (const unknown of [null, { ...layout, layers: 4, compression: "zip" }, { layers: 4 }]) {
      const [context, generation] = [await scripted(layout), await scripted(unknown)];
      await using routed = await route({ context: [context], generation: [generation], settings });
      expect((await routed.complete()).status).toBe(200);
    }
  });

  it("that would fit, of which the one half can't take requests, are no reason to call the other ones incompatible", async () => {
    const [context, generation] = [await scripted(layout), await scripted(layout)];
    await using routed = await route({ context: [context], generation: [generation], settings });
    context.health = 503;
    const error = async () => errorOf(await routed.complete());
    await expect.poll(async () => (await error()).code).toBe("cluster_not_ready");
  });
});

describe("a generation worker that fails after prefill", () => {
  it("is followed by one that the computed KV fits", async () => {
    const small = { ...layout, layers: 4 };
    const contexts = await Promise.all([layout, small].map(scripted));
    const generations = await Promise.all([layout, small, layout].map(scripted));
    await using routed = await route({ context: contexts, generation: generations });
    const [first] = generations as [ScriptedWorker];
    first.generation = ({ response }) => void response.writeHead(500).end();
    expect((await routed.complete()).status).toBe(200);
    expect(generations.map(({ requests }) => requests.length)).toEqual([1, 0, 1]);
    expect(contexts.map(({ requests }) => requests.length)).toEqual([1, 0]);
  });
});

describe("real workers of two models of different shape", () => {
  const workers = new Workers();
  const folder = mkdtempSync(join(tmpdir(), "kvt-misfits-"));
  const shapes = {
    wide: { seed: 3, layers: 3, heads: 6, kvHeads: 3, headDim: 16, feedForward: 64, vocab: 768, context: 512 },
    deep: { seed: 4, layers: 6, heads: 4, kvHeads: 2, headDim: 32, feedForward: 64, vocab: 768, context: 512 },
  };
  const body = { prompt: "Once upon a time there was", max_tokens: 12, temperature: 0, ignore_eos: true };
  let wide: WorkerProcess[];
  let deep: WorkerProcess[];

  beforeAll(async () => {
    const tiny = await ReferenceEngine.load(tinyModel);
    const start = (name: keyof typeof shapes): Promise<WorkerProcess[]> => {
      const model = join(folder, `${name}.gguf`);
      writeRandomLlama(model, shapes[name], tokenizerOf(tiny.metadata));
      const settings = { ...withoutReuse, model, servedModelName: "m" };
      return Promise.all([workers.start(settings), workers.start(settings)]);
    };
    [wide, deep] = [await start("wide"), await start("deep")];
    await tiny.close();
  });
  afterAll(async () => {
    await workers[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true });
  });

  it.each(["context_first", "generation_first"] as const)("are refused as a pair before prefill, %s", async (style) => {
    const [context, generation] = [wide[0], deep[0]] as [WorkerProcess, WorkerProcess];
    await using router = await startRouterFor(context, generation, { scheduleStyle: style });
    const error = await ask(router.url, "completion", body).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(Refused);
    const refused = error as Refused;
    expect([refused.status, refused.code]).toEqual([503, "no_compatible_pair"]);
    for (const field of ["layers here 3, there 6", "kvHeads here 3, there 2", "headDim here 16, there 32"]) {
      expect(refused.message).toContain(field);
    }
    // Nothing was computed on either side: no request ever got there.
    for (const worker of [context, generation]) {
      expect(await metric(worker, 'kvt_worker_tokens_total{kind="prompt"}')).toBe(0);
      expect(await metric(worker, "kvt_worker_step_seconds_count")).toBe(1);
    }
  });

  it("are told apart also when they keep one model's KV in other numbers", async () => {
    const model = join(folder, "wide.gguf");
    const kvCache = { ...defaultWorkerSettings(model).kvCache, dtype: "bf16" as const };
    const other = await workers.start({ model, servedModelName: "m", kvCache });
    const [context] = wide as [WorkerProcess];
    await using router = await startRouterFor(context, other);
    const error = (await ask(router.url, "completion", body).catch((thrown: unknown) => thrown)) as Refused;
    expect([error.status, error.code]).toEqual([503, "no_compatible_pair"]);
    expect(error.message).toContain("dtype here f32, there bf16");
    expect(await metric(context, 'kvt_worker_tokens_total{kind="prompt"}')).toBe(0);
    await other.stop();
  });

  it("are told apart also when one of them spreads its layers unevenly", async () => {
    const model = join(folder, "deep.gguf");
    const settings = { ...withoutReuse, model, servedModelName: "m", pipelineParallelSize: 2, ppPartition: [4, 2] };
    const staged = await workers.start(settings);
    await using router = await startRouterFor(wide[0] as WorkerProcess, staged);
    const error = await ask(router.url, "completion", body).catch((thrown: unknown) => thrown);
    expect((error as Refused).code).toBe("no_compatible_pair");
    await staged.stop();
  });

  it("are paired with their own kind, and answer as one worker alone", async () => {
    const alone = new Set<string>();
    for (const worker of [wide[0], deep[0]] as WorkerProcess[])
      alone.add((await ask(worker.url, "completion", body)).text);
    expect(alone.size).toBe(2);
    const group = (...list: (WorkerProcess | undefined)[]) => ({
      servers: list.flatMap((worker) => (worker === undefined ? [] : [{ url: worker.url, origin: worker.url }])),
      policy: "round_robin" as const,
    });
    const [context, generation] = [wide[0], wide[1]] as [WorkerProcess, WorkerProcess];
    for (const scheduleStyle of ["context_first", "generation_first"] as const) {
      await using router = await startRouterFor(context, generation, {
        context: group(wide[0], deep[0]),
        generation: group(deep[1], wide[1]),
        scheduleStyle,
      });
      const answers = new Set<string>();
      for (let number = 0; number < 6; number++) answers.add((await ask(router.url, "completion", body)).text);
      expect(answers).toEqual(alone);
    }
  });
});
