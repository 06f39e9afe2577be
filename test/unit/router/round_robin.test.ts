import { describe, expect, it } from "vitest";
import { RoundRobin } from "../../../src/router/policies/round_robin.ts";
import type { UpstreamWorker } from "../../../src/router/upstream_worker.ts";

const workers = [0, 1, 2, 3].map((position) => ({ position }) as UpstreamWorker);
const pick = (...positions: number[]): UpstreamWorker[] =>
  workers.filter((worker) => positions.includes(worker.position));

describe("round robin", () => {
  it("goes through the list in order and starts again", () => {
    const policy = new RoundRobin();
    expect(Array.from({ length: 6 }, () => policy.choose(workers).position)).toEqual([0, 1, 2, 3, 0, 1]);
  });

  it("skips workers that are not candidates without giving anybody two turns in a row", () => {
    const policy = new RoundRobin();
    expect(policy.choose(pick(0, 1, 3)).position).toBe(0);
    expect(policy.choose(pick(0, 2, 3)).position).toBe(2);
    expect(policy.choose(pick(0, 1, 2)).position).toBe(0);
    expect(policy.choose(pick(0, 1, 2)).position).toBe(1);
  });

  it("takes the only candidate again and again", () => {
    const policy = new RoundRobin();
    expect([1, 2, 3].map(() => policy.choose(pick(2)).position)).toEqual([2, 2, 2]);
  });
});
