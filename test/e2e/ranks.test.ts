import { describe, expect, it } from "vitest";
import { eventually } from "../integration/waits.ts";
import { ask } from "../integration/worker/client.ts";
import { goldens } from "../integration/worker/golden.ts";
import { expectGolden } from "../integration/worker/golden_check.ts";
import { deploy } from "./deployed.ts";

describe.each(["context_first", "generation_first"] as const)(
  "workers of unequal ranks behind a router, %s",
  (scheduleStyle) => {
    it("answer every golden token for token, whole and streamed, and keep nothing", { timeout: 180_000 }, async () => {
      await using deployed = await deploy({
        context: 1,
        generation: 1,
        flags: { context: ["--tp_size", "4", "--pp_size", "2"], generation: ["--tp_size", "2", "--pp_size", "3"] },
        settings: { scheduleStyle },
      });
      for (const golden of goldens) {
        expectGolden(await ask(deployed.router.url, golden.kind, golden.body), golden);
        const streamed = await ask(deployed.router.url, golden.kind, { ...golden.body, stream: true });
        expect(streamed.text, golden.name).toBe(golden.outputText);
      }
      const all = [...deployed.context, ...deployed.generation];
      for (const worker of all) {
        await eventually(
          worker.stats,
          ({ blocks, sends, receives }) =>
            blocks.pinned === 0 && sends.open === 0 && sends.waiting === 0 && receives.open === 0,
        );
      }
      const infos = await Promise.all(all.map(async ({ url }) => (await fetch(`${url}/server_info`)).json()));
      expect(infos).toMatchObject([{ geometry: { tp: 4, pp: 2 } }, { geometry: { tp: 2, pp: 3 } }]);
    });
  },
);
