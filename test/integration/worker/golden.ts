import { readFileSync } from "node:fs";
import type { Body } from "./client.ts";

export interface Golden {
  readonly name: string;
  readonly kind: "chat" | "completion";
  readonly ids: readonly number[];
  readonly outputIds: readonly number[];
  readonly outputText: string;
  /** Greedy, with log probabilities, so that every token's bytes come back. */
  readonly body: Body;
}

interface GoldenFile {
  readonly prompts: readonly {
    readonly name: string;
    readonly kind: string;
    readonly messages?: readonly unknown[];
    readonly text: string;
    readonly ids: readonly number[];
    readonly output_ids: readonly number[];
    readonly output_text: string;
  }[];
}

const file = JSON.parse(readFileSync(new URL("../../../models/golden.json", import.meta.url), "utf8")) as GoldenFile;

/** The prompts of models/golden.json as requests. */
export const goldens: readonly Golden[] = file.prompts.map((prompt) => {
  const isChat = prompt.kind === "chat";
  return {
    name: prompt.name,
    kind: isChat ? "chat" : "completion",
    ids: prompt.ids,
    outputIds: prompt.output_ids,
    outputText: prompt.output_text,
    body: {
      temperature: 0,
      max_tokens: 48,
      ...(isChat ? { messages: prompt.messages, logprobs: true } : { prompt: prompt.text, logprobs: 0 }),
    },
  };
});
