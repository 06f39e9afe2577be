import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { addCounts, closingSummary, noCounts, readVitestReport } from "../../../scripts/report.mjs";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvt-report-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const test = (fullName: string, status: string) => ({ fullName, status });

/** Counts of a report with these files, for a vitest that ended with `exitCode`. */
function counted(exitCode: number, testResults: readonly object[]) {
  const file = join(folder, "report.json");
  writeFileSync(file, JSON.stringify({ testResults }));
  return readVitestReport(file, exitCode, "unit tests", folder);
}

describe("counting a vitest report", () => {
  it("adds passed, failed and skipped tests, and names the latter two with their file", () => {
    const name = join(folder, "test/a.test.ts");
    const tests = [test("does", "passed"), test("breaks", "failed"), test("waits", "skipped"), test("later", "todo")];
    expect(counted(1, [{ name, status: "failed", assertionResults: tests }])).toEqual({
      passed: 1,
      failed: 1,
      skipped: 2,
      failures: ["test/a.test.ts: breaks"],
      skips: ["test/a.test.ts: waits", "test/a.test.ts: later"],
    });
  });

  it("counts a file that could not be run as a failure", () => {
    const suite = {
      name: join(folder, "b.test.ts"),
      status: "failed",
      message: "no such module",
      assertionResults: [],
    };
    expect(counted(1, [suite]).failures).toEqual(["b.test.ts: no such module"]);
  });

  it("never calls a run good that vitest ended with an error", () => {
    const suite = { name: join(folder, "c.test.ts"), status: "passed", assertionResults: [test("does", "passed")] };
    expect(counted(1, [suite]).failed).toBe(1);
    expect(counted(0, [suite]).failed).toBe(0);
  });

  it("counts a run without a report as a failure", () => {
    expect(readVitestReport(join(folder, "none.json"), 137, "unit tests", folder).failures).toEqual([
      "unit tests: vitest ended with code 137 before it wrote a report",
    ]);
  });
});

describe("the closing summary", () => {
  it("ends with the sum as its last line", () => {
    const counts = addCounts(addCounts(noCounts(), { ...noCounts(), passed: 3 }), {
      ...noCounts(),
      passed: 2,
      failed: 1,
      failures: ["it breaks"],
    });
    const lines = closingSummary(counts).split("\n");
    expect(lines).toContain("  it breaks");
    expect(lines.at(-1)).toBe("5 passed, 1 failed, 0 skipped");
  });
});
