import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { errorsPage } from "../../../scripts/errors_page.mjs";
import { errors } from "../../../src/errors.ts";
import { filesBelow, repositoryRoot } from "./source_files.ts";

const read = (file: string): string => readFileSync(join(repositoryRoot, file), "utf8");
const pages = [
  ...filesBelow("docs", ".md"),
  ...["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].filter((file) => existsSync(join(repositoryRoot, file))),
];

/** GitHub's anchor of a heading. */
const anchorOf = (heading: string): string =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\s_-]/gu, "")
    .trim()
    .replaceAll(/\s/g, "-");

function anchorsOf(page: string): Set<string> {
  const text = read(page);
  const headings = [...text.matchAll(/^#{1,6}\s+(.+)$/gm)].map(([, heading]) => anchorOf(heading ?? ""));
  const explicit = [...text.matchAll(/<a id="([^"]+)">/g)].map(([, id]) => id ?? "");
  return new Set([...headings, ...explicit]);
}

/** Links to files of the repository, without those inside code. */
function linksOf(page: string): string[] {
  const prose = read(page)
    .replaceAll(/```.*?```/gs, "")
    .replaceAll(/`[^`\n]*`/g, "");
  const markdown = [...prose.matchAll(/\]\(([^)\s]+)\)/g)].map(([, link]) => link ?? "");
  const html = [...prose.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, link]) => link ?? "");
  return [...markdown, ...html].filter((link) => !/^[a-z]+:/.test(link));
}

describe("the documentation", () => {
  it("has docs/errors.md as `npm run docs` writes it: a row for each code, no other", () => {
    expect(read("docs/errors.md")).toBe(errorsPage(errors));
  });

  it.each(pages)("has only links that lead somewhere: %s", (page) => {
    const dead = linksOf(page).filter((link) => {
      const [path = "", anchor] = link.split("#");
      const target = path === "" ? page : join(dirname(page), path);
      if (!existsSync(join(repositoryRoot, target))) return true;
      return anchor !== undefined && target.endsWith(".md") && !anchorsOf(target).has(anchor);
    });
    expect(dead).toEqual([]);
  });

  it("has every page that a comment of the source names", () => {
    const sources = [...filesBelow("src", ".ts"), ...filesBelow("native", ".h"), ...filesBelow("native", ".cc")];
    const dead = sources.flatMap((file) =>
      [...read(file).matchAll(/docs\/[\w/-]+\.md/g)]
        .filter(([page]) => !existsSync(join(repositoryRoot, page)))
        .map(([page]) => `${file}: ${page}`),
    );
    expect(dead).toEqual([]);
  });

  it("has decisions with a number of their own (NNN-name.md), each of at most 30 lines", () => {
    const records = filesBelow("docs/decisions", ".md").map((file) => file.split("/").at(-1) ?? "");
    expect(records.filter((name) => !/^\d{3}-[a-z0-9-]+\.md$/.test(name))).toEqual([]);
    const numbers = records.map((name) => name.slice(0, 3));
    expect(numbers.filter((number, index) => numbers.indexOf(number) !== index)).toEqual([]);
    const long = records.filter((name) => read(`docs/decisions/${name}`).trimEnd().split("\n").length > 30);
    expect(long).toEqual([]);
  });
});

describe("the table of errors", () => {
  it("has every code in one of the tables in src/errors only", () => {
    const rows = filesBelow("src/errors", "_errors.ts").flatMap(
      (file) => read(file).match(/^ {2}[A-Z_0-9]+: \{$/gm) ?? [],
    );
    expect(rows.length).toBe(Object.keys(errors).length);
  });

  it.each(Object.entries(errors))("%s says what happened and what to do", (_, { message, remedy, status }) => {
    expect(message).not.toBe("");
    expect(remedy.length).toBeGreaterThan(5);
    expect(status).toBeGreaterThanOrEqual(400);
    expect(status).toBeLessThan(600);
  });
});
