import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { demoClaims } from "../../../scripts/demo_lines.mjs";

const readme = readFileSync(new URL("../../../README.md", import.meta.url), "utf8");
/** What it printed once, as the README shows it. */
const [, whole = ""] = /```text\n(kv-transceiver demo\n[\s\S]*?)```/.exec(readme) ?? [];

const broken = (text: string): string[] =>
  demoClaims(text)
    .filter(({ holds }) => !holds)
    .map(({ what }) => what);

describe("what the output of npm start must say", () => {
  it("stands in the README's transcript", () => {
    expect(whole).not.toBe("");
    expect(broken(whole)).toEqual([]);
  });

  it.each([
    ["  4 processes ready in", "  3 processes ready in", "four processes start"],
    [
      "Answer    The pass key is 0",
      "Answer    The pass key is 9",
      "the answer names the key that stands in the prompt",
    ],
    ["  prefill  ", "  prefail  ", "prefill has a time and a worker"],
    ["over shared_memory", "", "the transfer has blocks, bytes, a rate and a path"],
    ["tokens by generation", "tokens", "decode has a time and a worker"],
    [": 11 tokens and", ": 0 tokens and", "one worker alone gives the same answer, to the last bit"],
    ["it would be: ", "it would be: 02406 ", "an empty cache gives another answer"],
    ["All 7 processes", "All 6 processes", "all processes have ended"],
  ])("fails when %j is %j", (was, is, what) => {
    expect(whole).toContain(was);
    expect(broken(whole.replace(was, is))).toEqual([what]);
  });

  it("fails in everything when it printed nothing", () => {
    expect(broken("")).toHaveLength(demoClaims("").length);
  });
});
