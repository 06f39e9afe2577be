import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";

export interface HiddenKey {
  /** Five digits that stand nowhere but in this prompt. */
  readonly key: string;
  /** The sentence around the key, with a few words of the story on both sides. */
  readonly excerpt: { readonly before: string; readonly key: string; readonly after: string };
  readonly story: string;
  readonly question: string;
}

const EXCERPT_CHARS = 40;

/** Ends of sentences outside quotations, so that the key's sentence stands between two sentences of the story. */
function sentenceEnds(story: string): number[] {
  const ends: number[] = [];
  let quoted = false;
  for (let i = 0; i < story.length - 1; i++) {
    if (story[i] === '"') quoted = !quoted;
    if (!quoted && story[i] === "." && story[i + 1] === " ") ends.push(i + 1);
  }
  return ends;
}

/** Puts a random pass key at a random place of the story. */
export function hideKey(storyFile: URL | string): HiddenKey {
  const text = readFileSync(storyFile, "utf8").trim();
  const key = String(randomInt(100_000)).padStart(5, "0");
  const ends = sentenceEnds(text);
  const at = ends[randomInt(Math.max(1, ends.length))] ?? 0;
  const sentence = `The pass key is ${key}. Remember it.`;
  const before = text.slice(0, at);
  const after = text.slice(at).trimStart();
  return {
    key,
    excerpt: {
      before: `${before.slice(-EXCERPT_CHARS).replace(/^\S*\s/, "")} `.trimStart(),
      key: sentence,
      after: ` ${after.slice(0, EXCERPT_CHARS).replace(/\s\S*$/, "")}`,
    },
    story: `${before} ${sentence} ${after}`.trim(),
    question: "What is the pass key?",
  };
}
