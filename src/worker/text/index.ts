export { ChatTemplate, type RenderedChat, type RenderOptions, type TemplateMessage } from "./chat_template.ts";
export { IncrementalDetokenizer, type TokenBytes } from "./detokenizer.ts";
export { type PromptReader, readPrompt } from "./prompt.ts";
export { type StopResult, StopStrings } from "./stop_strings.ts";
export { type EncodeOptions, Tokenizer, type TokenLimit } from "./tokenizer.ts";
