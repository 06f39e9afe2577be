import { KvError } from "../../errors.ts";
import type { ChatMessage, GenerationParams } from "../../openai/index.ts";
import type { ChatTemplate, TemplateMessage } from "./chat_template.ts";
import type { EncodeOptions, Tokenizer, TokenLimit } from "./tokenizer.ts";

/** What turns requests into token ids: one a model. */
export interface PromptReader {
  readonly model: string;
  readonly tokenizer: Tokenizer;
  /** Absent when the model file has none. */
  readonly template: ChatTemplate | undefined;
  /** Longest prompt that is served. */
  readonly limit: TokenLimit;
}

/**
 * The prompt's token ids, from whatever form the request has it in.
 * @throws KvError PROMPT_TOO_LONG, NO_CHAT_TEMPLATE, CHAT_TEMPLATE_FAILED, INVALID_REQUEST for an empty prompt, and what
 * Tokenizer.encodeAsync throws
 */
export async function readPrompt(
  params: GenerationParams,
  reader: PromptReader,
  signal?: AbortSignal,
): Promise<Uint32Array> {
  const { prompt } = params;
  const { tokenizer, limit } = reader;
  if (prompt.from === "ids") {
    // As they are: a router's ids are the context worker's, bos included.
    return checked(Uint32Array.from(prompt.ids), limit);
  }
  const { text, ...guard } = prompt.from === "text" ? { text: prompt.text } : renderMessages(prompt, reader);
  const bos = params.addSpecialTokens && tokenizer.vocabulary.addBos ? tokenizer.bosId : undefined;
  const options: EncodeOptions = { specials: true, ...guard, limit };
  const ids = await tokenizer.encodeAsync(text, options, signal);
  if (ids.length === 0 && bos === undefined) {
    throw new KvError("INVALID_REQUEST", {
      param: params.kind === "chat" ? "messages" : "prompt",
      why: "it is empty: there is no token to start from",
    });
  }
  return checked(Uint32Array.from(bos === undefined ? ids : [bos, ...ids]), limit);
}

function checked(ids: Uint32Array, limit: TokenLimit): Uint32Array {
  if (ids.length <= limit.tokens) return ids;
  throw new KvError("PROMPT_TOO_LONG", { tokens: ids.length, limit: limit.tokens, by: limit.name });
}

type MessagesPrompt = Extract<GenerationParams["prompt"], { from: "messages" }>;

function renderMessages(prompt: MessagesPrompt, reader: PromptReader) {
  if (reader.template === undefined) throw new KvError("NO_CHAT_TEMPLATE", { model: reader.model });
  return reader.template.render(prompt.messages.map(templateMessage), {
    addGenerationPrompt: prompt.addGenerationPrompt,
    values: prompt.templateValues,
    specialsInContent: prompt.specialsInContent,
  });
}

/** Templates know strings only: parts are joined by line breaks, as vLLM does; `developer` is the newer name of `system`. */
function templateMessage({ role, content, name, reasoning_content }: ChatMessage): TemplateMessage {
  return {
    role: role === "developer" ? "system" : role,
    content: typeof content === "string" ? content : (content ?? []).map((part) => part.text).join("\n"),
    ...(name == null ? {} : { name }),
    ...(reasoning_content == null ? {} : { reasoning_content }),
  };
}
