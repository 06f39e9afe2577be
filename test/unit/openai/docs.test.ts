import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { fieldNotes } from "../../../src/openai/fields.ts";
import { ChatCompletionRequest, ChatMessage, CompletionRequest } from "../../../src/openai/index.ts";

const page = readFileSync(new URL("../../../docs/openai.md", import.meta.url), "utf8");

/** The rows of the table that stands under a heading, as lists of cells. */
const rowsUnder = (heading: string): string[][] => {
  const section = page.split(`## ${heading}\n`)[1]?.split("\n## ")[0] ?? "";
  const rows = section.split("\n").filter((line) => line.startsWith("| `"));
  return rows.map((row) =>
    row
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
};

test.each([
  ["POST /v1/completions", CompletionRequest],
  ["POST /v1/chat/completions", ChatCompletionRequest],
  ["Fields of a message", ChatMessage],
] as const)("docs/openai.md lists the fields of %s exactly as the schema has them", (heading, schema) => {
  const wanted = [...fieldNotes(schema)].map(([name, field]) => [`\`${name}\``, field?.verdict, field?.note]);
  expect(rowsUnder(heading)).toEqual(wanted);
});

test("every field has a verdict", () => {
  for (const schema of [CompletionRequest, ChatCompletionRequest, ChatMessage]) {
    for (const [name, note] of fieldNotes(schema)) expect(note, name).toBeDefined();
  }
});

/** Request fields of OpenAI's API reference, so that none is merely unknown here. */
const openaiCompletion =
  "model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options suffix temperature top_p user";
const openaiChat =
  "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options";

test.each([
  ["completions", openaiCompletion, CompletionRequest],
  ["chat completions", openaiChat, ChatCompletionRequest],
] as const)("every field of OpenAI's %s is decided", (_, names, schema) => {
  const decided = fieldNotes(schema);
  expect(names.split(" ").filter((name) => !decided.has(name))).toEqual([]);
});
