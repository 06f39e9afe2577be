import { Template } from "@huggingface/jinja";
import { KvError } from "../../errors.ts";
import type { GgufValue } from "../../native/engine_binding.ts";
import { ControlTokens } from "./special_tokens.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface TemplateMessage {
  readonly role: string;
  readonly content: string;
  readonly name?: string;
  readonly reasoning_content?: string;
}

export interface RenderOptions {
  readonly addGenerationPrompt: boolean;
  /** Further names for the template; they can't hide messages, tokens or add_generation_prompt. */
  readonly values?: Readonly<Record<string, boolean | string | number>>;
  /** Control tokens written in message text become tokens; false (the rule): they are text. */
  readonly specialsInContent?: boolean;
}

/** A rendered prompt; hand both to `Tokenizer.encode(text, { specials: true, guard })`. */
export interface RenderedChat {
  readonly text: string;
  readonly guard?: string;
}

/** Unicode noncharacters: no text for exchange holds them, and a template treats them as any letter. */
const guardCharacters = Array.from({ length: 32 }, (_, at) => String.fromCharCode(0xfdd0 + at));

/**
 * The model's chat template. Text of messages can't forge control tokens: a guard character is put into whatever looks like one,
 * or could become one together with the template's own text, and the tokenizer takes it out after it has found the real ones
 * (docs/decisions/013-special-tokens-in-messages.md).
 */
export class ChatTemplate {
  readonly #source: string;
  readonly #template: Template | undefined;
  readonly #broken: unknown;
  readonly #control: ControlTokens;
  readonly #tokens: Readonly<Record<string, string>>;

  /** A template that can't be parsed is kept: /v1/completions needs none, and chat answers with the reason. */
  constructor(source: string, tokenizer: Tokenizer) {
    this.#source = source;
    this.#control = new ControlTokens(tokenizer.controlTexts);
    const { tokens, bosId, eosIds } = tokenizer.vocabulary;
    const nameOf = (id: number | undefined): string => (id === undefined ? "" : (tokens[id] ?? ""));
    this.#tokens = { bos_token: nameOf(bosId), eos_token: nameOf(eosIds[0]) };
    try {
      this.#template = new Template(source);
    } catch (error) {
      this.#broken = error;
    }
  }

  /** @returns undefined when the file has no template: chat is then answered with NO_CHAT_TEMPLATE */
  static fromMetadata(metadata: Readonly<Record<string, GgufValue>>, tokenizer: Tokenizer): ChatTemplate | undefined {
    const source = metadata["tokenizer.chat_template"];
    return typeof source === "string" ? new ChatTemplate(source, tokenizer) : undefined;
  }

  /** @throws KvError CHAT_TEMPLATE_FAILED with the template's own words, INVALID_REQUEST */
  render(messages: readonly TemplateMessage[], options: RenderOptions): RenderedChat {
    const guard = options.specialsInContent ? undefined : this.#chooseGuard(messages, options.values ?? {});
    const shield = (text: string): string => (guard === undefined ? text : this.#control.guard(text, guard));
    const values = Object.fromEntries(
      Object.entries(options.values ?? {}).map(([name, value]) => [
        name,
        typeof value === "string" ? shield(value) : value,
      ]),
    );
    const shielded = messages.map((message) => ({
      ...message,
      content: shield(message.content),
      ...(message.name === undefined ? {} : { name: shield(message.name) }),
      ...(message.reasoning_content === undefined ? {} : { reasoning_content: shield(message.reasoning_content) }),
    }));
    const text = this.#run({
      ...values,
      tools: null,
      documents: null,
      ...this.#tokens,
      messages: shielded,
      add_generation_prompt: options.addGenerationPrompt,
    });
    return guard === undefined ? { text } : { text, guard };
  }

  #run(scope: Record<string, unknown>): string {
    if (this.#template === undefined) throw failed(this.#broken);
    try {
      return this.#template.render(scope);
    } catch (error) {
      throw failed(error);
    }
  }

  #chooseGuard(messages: readonly TemplateMessage[], values: NonNullable<RenderOptions["values"]>): string {
    const texts = [
      this.#source,
      ...messages.flatMap(({ content, name, reasoning_content }) => [content, name ?? "", reasoning_content ?? ""]),
      ...Object.values(values).filter((value) => typeof value === "string"),
    ];
    const free = guardCharacters.find((guard) => texts.every((text) => !text.includes(guard)));
    if (free !== undefined) return free;
    throw new KvError("INVALID_REQUEST", {
      param: "messages",
      why: "they hold every noncharacter from U+FDD0 to U+FDEF",
    });
  }
}

const WHY_CHARS_MAX = 300;

function failed(error: unknown): KvError {
  const why = error instanceof Error ? error.message : String(error);
  return new KvError("CHAT_TEMPLATE_FAILED", { why: why.slice(0, WHY_CHARS_MAX) }, { cause: error });
}
