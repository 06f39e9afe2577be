import { afterAll, describe, expect, it } from "vitest";
import type { WorkerSettings } from "../../../src/config/settings.ts";
import { post } from "../worker/client.ts";
import { Workers, withoutReuse } from "../worker/worker_process.ts";
import { route } from "./routed.ts";
import { CTX_REQUEST_ID, type ScriptedWorker } from "./scripted_worker.ts";
import { metric, startRouterFor } from "./workers_here.ts";

type Timing = Readonly<Record<string, number>>;
interface WorkerRecord {
  readonly request_id: string;
  readonly ctx_request_id: number;
  readonly perf_metrics: {
    readonly timing_metrics: Timing;
    readonly kv_cache_metrics: Readonly<Record<string, number>>;
    readonly kv_transfer: Readonly<Record<string, number | string>>;
  };
}
interface Joined {
  readonly ctx_server: string;
  readonly gen_server: string;
  readonly disagg_server_arrival_time: number;
  readonly disagg_server_first_token_time: number;
  readonly ctx_perf_metrics: WorkerRecord;
  readonly gen_perf_metrics: WorkerRecord;
}

const read = async (server: { readonly url: string }): Promise<Joined[]> =>
  (await (await fetch(`${server.url}/perf_metrics`)).json()) as Joined[];

/** What RequestDataParser of tensorrt_llm/serve/scripts/time_breakdown reads, in the order in which it stacks the segments. */
const stampsOf = ({ ctx_perf_metrics: ctx, gen_perf_metrics: gen, ...disagg }: Joined): (number | undefined)[] => {
  const [context, generation] = [ctx.perf_metrics.timing_metrics, gen.perf_metrics.timing_metrics];
  return [
    disagg.disagg_server_arrival_time,
    context.server_arrival_time,
    context.arrival_time,
    context.first_scheduled_time,
    context.first_token_time,
    context.server_first_token_time,
    generation.server_arrival_time,
    generation.arrival_time,
    generation.first_scheduled_time,
    generation.kv_cache_transfer_end,
    generation.server_first_token_time,
    disagg.disagg_server_first_token_time,
  ];
};

describe("perf metrics of a pair behind a router", () => {
  const workers = new Workers();
  afterAll(() => workers[Symbol.asyncDispose]());

  it("are one record a request, on the router's clock, in the shape of TensorRT-LLM's breakdown tool, and drained by reading", async () => {
    const settings: Partial<WorkerSettings> = { ...withoutReuse, perfMetricsMaxRequests: 10 };
    const context = await workers.start(settings);
    const generation = await workers.start(settings);
    await using router = await startRouterFor(context, generation, { perfMetricsMaxRequests: 10 });
    const prompt = Array.from({ length: 70 }, (_, index) => 5 + index);
    for (const stream of [false, true]) {
      await post(router.url, "/v1/completions", { prompt, max_tokens: 5, ignore_eos: true, temperature: 0, stream });
    }
    const records = await read(router);
    expect(records).toHaveLength(2);
    for (const record of records) {
      const { ctx_perf_metrics: ctx, gen_perf_metrics: gen } = record;
      expect([record.ctx_server, record.gen_server]).toEqual([context.url, generation.url]);
      expect(ctx.ctx_request_id).toBe(gen.ctx_request_id);
      const stamps = stampsOf(record);
      for (const [index, stamp] of stamps.entries()) {
        expect(stamp).toBeTypeOf("number");
        // Each process has a steady clock of its own, seconds apart; what is left after the exchange is its round trip.
        const before = index === 0 ? stamp : stamps[index - 1];
        expect(Number(stamp) - Number(before)).toBeGreaterThan(-0.1);
      }
      expect(gen.perf_metrics.kv_cache_metrics).toEqual({
        num_total_allocated_blocks: 3,
        num_new_allocated_blocks: 3,
        num_reused_blocks: 0,
        num_missed_blocks: 3,
      });
      for (const { perf_metrics: side } of [ctx, gen]) {
        const { kv_cache_size: bytes, last_token_time: last, first_token_time: first } = side.timing_metrics;
        expect(side.kv_transfer).toMatchObject({ bytes, transport: "shared_memory", retries: 0 });
        expect(Number(last)).toBeGreaterThanOrEqual(Number(first));
      }
      expect(Number(gen.perf_metrics.kv_transfer.pieces)).toBeGreaterThan(0);
    }
    expect(await read(router)).toEqual([]);
    expect(await read(context)).toEqual([]);
    // And under the names that dashboards for trtllm-serve ask for; the probe of the start is none of them.
    const labels = 'model_name="tiny",engine_type="kvt"';
    for (const worker of [context, generation]) {
      expect(await metric(worker, `trtllm_request_success_total{${labels},finished_reason="length"}`)).toBe(2);
      for (const name of ["e2e_request_latency", "time_to_first_token", "request_queue_time"]) {
        expect(await metric(worker, `trtllm_${name}_seconds_count{${labels}}`)).toBe(2);
      }
      expect(await metric(worker, `trtllm_kv_cache_utilization{${labels}}`)).toBe(0);
    }
    expect(await metric(generation, `trtllm_time_per_output_token_seconds_count{${labels}}`)).toBe(2);
  });

  it("of a worker alone are kept for the last requests only, and none without the settings", async () => {
    const kept = await workers.start({ ...withoutReuse, perfMetricsMaxRequests: 2 });
    const silent = await workers.start(withoutReuse);
    for (const id of ["a", "b", "c"]) {
      for (const { url } of [kept, silent])
        await post(url, "/v1/completions", { prompt: [5, 6], max_tokens: 2 }, { id });
    }
    const records = (await read(kept)) as unknown as WorkerRecord[];
    expect(records.map(({ request_id }) => request_id)).toEqual(["b", "c"]);
    expect(records[0]).not.toHaveProperty("ctx_request_id");
    expect(await read(silent)).toEqual([]);
  });
});

describe("joining records", () => {
  it("waits for the generation worker's, keeps ids above 2^53 apart, and does without a context record", async () => {
    await using routed = await route({
      settings: { perfMetricsMaxRequests: 2 },
      hooks: { ids: null },
    });
    const { complete, router } = routed;
    const [ctx, gen] = [routed.context[0], routed.generation[0]] as [ScriptedWorker, ScriptedWorker];
    const record = (id: bigint | string, name: string) =>
      `[{"request_id":"${name}","ctx_request_id":${id},"perf_metrics":{}}]`;
    await complete();
    ctx.perf.push(record(CTX_REQUEST_ID, "context"));
    expect(await read(router)).toEqual([]);
    gen.perf.push(record(BigInt(CTX_REQUEST_ID) + 1n, "another"), record(CTX_REQUEST_ID, "generation"));
    expect(await read(router)).toEqual([]);
    const text = await (await fetch(`${router.url}/perf_metrics`)).text();
    expect(text).toContain(`"ctx_request_id":${CTX_REQUEST_ID}`);
    expect(JSON.parse(text)).toMatchObject([
      { ctx_perf_metrics: { request_id: "context" }, gen_perf_metrics: { request_id: "generation" } },
    ]);
    await complete();
    gen.perf.push(record(CTX_REQUEST_ID, "lonely"));
    expect(await read(router)).toMatchObject([{ ctx_perf_metrics: {}, gen_perf_metrics: { request_id: "lonely" } }]);
    gen.perf.push("no JSON");
    expect(await read(router)).toEqual([]);
  });
});
