import { expect, it } from "vitest";
import { defaultWorkerSettings } from "../../../src/config/worker_settings.ts";
import { until } from "../waits.ts";
import { ask, type Body } from "./client.ts";
import { type Golden, goldens } from "./golden.ts";
import { expectGolden } from "./golden_check.ts";
import { transfersOf } from "./inspect.ts";
import { type Overrides, tinyModel, type WorkerProcess, Workers, withoutReuse } from "./worker_process.ts";

const { transfer } = defaultWorkerSettings(tinyModel);

async function askBoth(
  pair: Readonly<Record<"context" | "generation", WorkerProcess>>,
  golden: Golden,
  id: number,
  more: Body = {},
) {
  const info = (await (await fetch(`${pair.context.url}/server_info`)).json()) as { disaggregated_params: object };
  const params = { disagg_request_id: id, schedule_style: 1 };
  const options = { id: `request-${id}` };
  const context = { ...golden.body, disaggregated_params: { request_type: "context_only", ...params } };
  const generation = {
    ...golden.body,
    ...more,
    disaggregated_params: { request_type: "generation_only", ...params, ...info.disaggregated_params },
  };
  const [, reply] = await Promise.all([
    ask(pair.context.url, golden.kind, context, options),
    ask(pair.generation.url, golden.kind, generation, options),
  ]);
  return reply;
}

it.each([
  ["equal ranks", 1, {}, {}],
  ["TP 2 to PP 2", 4, { tensorParallelSize: 2 }, { pipelineParallelSize: 2 }],
  ["PP 3 to TP 4", 12, { pipelineParallelSize: 3 }, { tensorParallelSize: 4 }],
] as const)(
  "goldens are answered token for token, whole and streamed, when KV goes layer by layer: %s",
  async (_name, pulls: number, from: Overrides, to: Overrides) => {
    await using workers = new Workers();
    const verify = { ...transfer, verify: "full" } as const;
    const layerwise = { ...withoutReuse, transfer: { ...verify, layerwise: true } };
    const context = await workers.start({ ...layerwise, ...from });
    const generation = await workers.start({ ...withoutReuse, transfer: verify, ...to });
    const pair = { context, generation };
    let reads = 0;
    for (const [index, golden] of goldens.entries()) {
      expectGolden(await askBoth(pair, golden, 2 * index + 1), golden);
      const streamed = await askBoth(pair, golden, 2 * index + 2, { stream: true });
      expect(streamed.text, golden.name).toBe(golden.outputText);
      await until(
        "the transfer is noted",
        async () => (await transfersOf(generation, `request-${2 * index + 1}`)).length > 0,
      );
      for (const record of await transfersOf(generation, `request-${2 * index + 1}`)) {
        reads += (record as unknown as { chunks: number }).chunks;
      }
    }
    // Not every layer is told alone, but some are: a prompt of up to 256 tokens is one chunk, and would be one read for each pair of ranks.
    expect(reads).toBeGreaterThan(goldens.length * pulls);
  },
  180_000,
);
