import { expect, it } from "vitest";
import { promptsOf, requestOf } from "../../e2e/soak/plan.ts";

it("a soak's seed gives the same prompts and requests again, of mixed lengths, some left early", () => {
  const prompts = promptsOf(7, 40);
  expect(promptsOf(7, 40)).toEqual(prompts);
  const lengths = prompts.flatMap(({ body: { prompt } }) => (Array.isArray(prompt) ? [prompt.length] : []));
  expect(Math.min(...lengths)).toBeLessThan(10);
  expect(Math.max(...lengths)).toBeGreaterThan(1000);
  const requests = Array.from({ length: 1000 }, (_, index) => requestOf(7, index, prompts));
  expect(requests).toEqual(Array.from({ length: 1000 }, (_, index) => requestOf(7, index, prompts)));
  expect(requests[0]).not.toEqual(requestOf(8, 0, prompts));
  const left = requests.filter(({ leaveAfterMs }) => leaveAfterMs !== null).length;
  expect(left).toBeGreaterThan(150);
  expect(left).toBeLessThan(250);
  expect(new Set(requests.map(({ prompt }) => prompt)).size).toBe(prompts.length);
});
