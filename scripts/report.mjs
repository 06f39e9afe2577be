// Counts of tests, added up over vitest's JSON reports and the C++ programs, and the closing lines.
import { existsSync, readFileSync } from "node:fs";
import { relative } from "node:path";

/** @returns {{ passed: number, failed: number, skipped: number, failures: string[], skips: string[] }} */
export const noCounts = () => ({ passed: 0, failed: 0, skipped: 0, failures: [], skips: [] });

export function addCounts(sum, counts) {
  for (const key of ["passed", "failed", "skipped"]) sum[key] += counts[key];
  for (const key of ["failures", "skips"]) sum[key].push(...counts[key]);
  return sum;
}

export const printCounts = ({ passed, failed, skipped }) => `${passed} passed, ${failed} failed, ${skipped} skipped`;

/** Counts of one run of vitest. A run without a report, or one that fails without a failed test, counts as one failure. */
export function readVitestReport(file, exitCode, title, root) {
  const counts = noCounts();
  if (!existsSync(file)) {
    counts.failed = 1;
    counts.failures.push(`${title}: vitest ended with code ${exitCode} before it wrote a report`);
    return counts;
  }
  const report = JSON.parse(readFileSync(file, "utf8"));
  for (const suite of report.testResults) {
    const name = relative(root, suite.name);
    for (const test of suite.assertionResults) {
      if (test.status === "passed") counts.passed += 1;
      else if (test.status === "failed") {
        counts.failed += 1;
        counts.failures.push(`${name}: ${test.fullName}`);
      } else {
        counts.skipped += 1;
        counts.skips.push(`${name}: ${test.fullName}`);
      }
    }
    if (suite.status === "failed" && !suite.assertionResults.some((test) => test.status === "failed")) {
      counts.failed += 1;
      counts.failures.push(`${name}: ${suite.message || "the file could not be run"}`);
    }
  }
  if (exitCode !== 0 && counts.failed === 0) {
    counts.failed = 1;
    counts.failures.push(`${title}: vitest ended with code ${exitCode} though no test failed (an unhandled error?)`);
  }
  return counts;
}

/** The last lines of a run: what failed, what was skipped, and the sum as the very last one. */
export function closingSummary(counts) {
  const lines = [];
  if (counts.skips.length > 0) lines.push("", "skipped:", ...counts.skips.map((text) => `  ${text}`));
  if (counts.failures.length > 0) lines.push("", "failed:", ...counts.failures.map((text) => `  ${text}`));
  return [...lines, "", printCounts(counts)].join("\n");
}
