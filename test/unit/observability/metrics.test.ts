import { describe, expect, it } from "vitest";
import { latencyBuckets, Metrics } from "../../../src/observability/metrics.ts";

describe("metrics", () => {
  it("keeps the counts of two servers in one process apart", async () => {
    const one = new Metrics();
    const two = new Metrics();
    const spec = { name: "total_requests", help: "requests" };
    one.counter(spec).inc(3);
    two.counter(spec).inc(5);
    expect(await one.text()).toContain("\ntotal_requests 3\n");
    expect(await two.text()).toContain("\ntotal_requests 5\n");
  });

  it("adds the figures of the process itself", async () => {
    expect(await new Metrics().text()).toContain("process_resident_memory_bytes");
  });

  it("reads a gauge at each scrape", async () => {
    const metrics = new Metrics();
    let free = 7;
    metrics.gauge({ name: "free_blocks", help: "blocks", read: (gauge) => gauge.set(free) });
    expect(await metrics.text()).toContain("\nfree_blocks 7\n");
    free = 6;
    expect(await metrics.text()).toContain("\nfree_blocks 6\n");
  });

  it("counts by label and into buckets", async () => {
    const metrics = new Metrics();
    metrics.counter({ name: "errors", help: "errors", labels: ["code"] }).inc({ code: "CLOSED" });
    metrics.histogram({ name: "wait_seconds", help: "wait", buckets: latencyBuckets }).observe(0.02);
    const text = await metrics.text();
    expect(text).toContain('errors{code="CLOSED"} 1');
    expect(text).toContain('wait_seconds_bucket{le="0.025"} 1');
    expect(text).toContain('wait_seconds_bucket{le="0.01"} 0');
  });
});
