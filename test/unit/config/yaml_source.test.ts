import { describe, expect, it } from "vitest";
import { type Problem, Problems, renderProblem } from "../../../src/config/problems.ts";
import { YamlSource } from "../../../src/config/yaml_source.ts";

function parse(text: string): { source: YamlSource; problems: readonly Problem[] } {
  const problems = new Problems();
  return { source: YamlSource.parse("f.yaml", text, problems), problems: problems.all };
}

const at = (problem: Problem | undefined) => [problem?.place?.line, problem?.place?.column];

describe("a YAML file", () => {
  it("reads True, TRUE and true as booleans, and yes and on as words", () => {
    const { source, problems } = parse("a: True\nb: TRUE\nc: true\nd: False\ne: yes\nf: on\n");
    expect({ ...source.root }).toEqual({ a: true, b: true, c: true, d: false, e: "yes", f: "on" });
    expect(problems).toEqual([]);
  });

  it("refuses a duplicate key at its second place, by name", () => {
    const { problems } = parse("a:\n  port: 1\n  host: x\n  port: 2\n");
    expect(problems).toHaveLength(1);
    expect(problems[0]?.text).toBe("port is given twice in this map; keep one");
    expect(at(problems[0])).toEqual([4, 3]);
  });

  it("reports several syntax errors of one file together", () => {
    const { problems } = parse("a: [1, 2\nb: 3\n\tc: 4\nd: 'open\n");
    expect(problems.length).toBeGreaterThan(1);
    for (const problem of problems) expect(problem.place?.line).toBeGreaterThan(0);
  });

  it("is empty for an empty file, a comment or null", () => {
    for (const text of ["", "\n\n", "# nothing\n", "---\n", "~\n", "null"]) {
      const { source, problems } = parse(text);
      expect([Object.keys(source.root), problems], JSON.stringify(text)).toEqual([[], []]);
    }
  });

  it.each([
    ["a list at the top", "- 1\n- 2\n", "map of keys", [1, 1]],
    ["a second document", "a: 1\n---\nb: 2\n", "second one starts here", [2, 1]],
    ["a tag of another language", "a: !!python/object:os.system x\n", "tag", [1, 4]],
    ["a key that is no name", "a:\n  1: x\n", "1 must be a name", [2, 3]],
    ["a key that is a list", "? [a, b]\n: 1\n", "this key must be a name", [1, 1]],
    ["an unknown anchor", "a: *nobody\n", "anchor nobody", [1, 4]],
  ])("refuses %s", (_what, text, words, place) => {
    const { problems } = parse(text);
    expect(problems[0]?.text).toContain(words);
    expect(at(problems[0])).toEqual(place);
  });

  it("follows anchors, but not into a bomb or a circle", () => {
    expect(parse("a: &x {b: 1}\nc: *x\n").source.get(["c", "b"])).toBe(1);
    const levels = Array.from({ length: 12 }, (_, i) => `k${i}: &l${i} [${Array(10).fill(i ? `*l${i - 1}` : 1)}]`);
    expect(parse(levels.join("\n")).problems[0]?.text).toContain("too many values");
    expect(parse("a: &x [*x]\n").problems.length).toBeGreaterThan(0);
  });

  it("refuses files that are too large or nested too deeply, with a place", () => {
    const large = parse(`a: ${"x".repeat(1 << 20)}`);
    expect(large.problems[0]?.text).toContain("larger than");
    expect(at(large.problems[0])).toEqual([1, 1]);
    for (const text of [`${"[".repeat(40)}${"]".repeat(40)}`, "[".repeat(200_000), "- ".repeat(40), "? ".repeat(40)]) {
      const [first] = parse(`a: 1\nb:\n  ${text}`).problems;
      expect([first?.text, first?.place?.line]).toEqual(["nested more than 32 levels deep", 3]);
    }
  });

  it("knows line and column after CRLF, tabs and wide characters", () => {
    const { source } = parse('a: 1\r\n"ключ": {b: 2, "ü": 3}\r\n');
    expect(source.placeOfValue(["ключ", "b"])).toMatchObject({ line: 2, column: 13, text: '"ключ": {b: 2, "ü": 3}' });
  });

  it("keeps a key named __proto__ an ordinary key", () => {
    const { source } = parse("__proto__: {polluted: 1}\nconstructor: 2\n");
    expect(Object.keys(source.root).sort()).toEqual(["__proto__", "constructor"]);
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
  });
});

describe("a problem", () => {
  it("is shown as file:line:column, the line itself and a caret under the column", () => {
    const { source } = parse("a: 1\nsection:\n  key: 17\n");
    const place = source.placeOfValue(["section", "key"]);
    const text = renderProblem({ kind: "error", key: "section.key", text: "is odd", place });
    expect(text).toBe("f.yaml:3:8: error: section.key: is odd\n  3 |   key: 17\n    |        ^");
  });

  it("keeps tabs in front of the caret, and cuts a long line around it", () => {
    const tabbed = { file: "f", line: 1, column: 3, text: "\t\tx" };
    expect(renderProblem({ kind: "note", key: "", text: "t", place: tabbed })).toBe(
      "f:1:3: note: t\n  1 | \t\tx\n    | \t\t^",
    );
    const long = { file: "f", line: 1, column: 500, text: `${"a".repeat(499)}X${"b".repeat(500)}` };
    const [, line = "", caret = ""] = renderProblem({ kind: "error", key: "", text: "t", place: long }).split("\n");
    expect(line.length).toBeLessThan(140);
    expect(line[caret.indexOf("^")]).toBe("X");
  });
});
