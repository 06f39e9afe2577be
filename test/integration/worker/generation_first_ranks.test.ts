import { expect, it } from "vitest";
import { ask } from "./client.ts";
import { goldens } from "./golden.ts";
import { expectGolden } from "./golden_check.ts";
import { Workers } from "./worker_process.ts";

it("a generation-first pair whose workers spread the KV over different ranks answers token for token", async () => {
  await using workers = new Workers();
  const context = await workers.start({ tensorParallelSize: 2 });
  const generation = await workers.start({ pipelineParallelSize: 2 });
  const info = (await (await fetch(`${context.url}/server_info`)).json()) as { disaggregated_params: object };
  for (const [index, golden] of goldens.slice(0, 4).entries()) {
    const id = 1000 + index;
    const params = { disagg_request_id: id, schedule_style: 1 };
    const options = { id: `request-${id}` };
    const [, reply] = await Promise.all([
      ask(
        context.url,
        golden.kind,
        { ...golden.body, disaggregated_params: { request_type: "context_only", ...params } },
        options,
      ),
      ask(
        generation.url,
        golden.kind,
        {
          ...golden.body,
          disaggregated_params: { request_type: "generation_only", ...params, ...info.disaggregated_params },
        },
        options,
      ),
    ]);
    expectGolden(reply, golden);
  }
  expect(info.disaggregated_params).toMatchObject({ ctx_info_endpoint: { length: 2 } });
});
