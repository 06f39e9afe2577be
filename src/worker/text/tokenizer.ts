import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import { KvError } from "../../errors.ts";
import type { GgufValue } from "../../native/engine_binding.ts";
import { PIECE_CHARS, pieces, preTokenizers } from "./pre_tokenizers.ts";
import { SpecialSplitter } from "./special_tokens.ts";
import { tokenizeInThread } from "./tokenizer_pool.ts";
import { isPlain, readVocabulary, tokenBytes, tokenType, type Vocabulary } from "./vocabulary.ts";

export interface EncodeOptions {
  /** Control tokens written out in the text become their ids; otherwise they are text like any other. */
  readonly specials: boolean;
  /** The character that a chat template's user text was guarded with (see ChatTemplate); taken out before tokenising. */
  readonly guard?: string | undefined;
  /** Work ends with PROMPT_TOO_LONG as soon as more tokens are certain. */
  readonly limit?: TokenLimit | undefined;
}

export interface TokenLimit {
  readonly tokens: number;
  /** The option that sets it, for the message. */
  readonly name: string;
}

/** Longer texts are tokenised off the JS thread (4 KiB take about 2 ms). */
const THREAD_BYTES = 4096;
/** A stretch without a word's end is one unit of work; the merge of a million characters takes seconds and 200 MB. */
const UNBROKEN_CHARS_MAX = 1 << 20;

/** The model's tokenizer, built in memory from GGUF metadata. */
export class Tokenizer {
  readonly vocabulary: Vocabulary;
  readonly #library: LibraryTokenizer;
  readonly #bytes: readonly Uint8Array[];
  readonly #control: SpecialSplitter;
  readonly #userDefined: SpecialSplitter;
  readonly #tokenBytesMax: number;
  readonly #textDecoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(vocabulary: Vocabulary) {
    this.vocabulary = vocabulary;
    this.#library = buildLibraryTokenizer(vocabulary);
    this.#bytes = vocabulary.tokens.map((token, id) => tokenBytes(token, vocabulary.types[id]));
    this.#tokenBytesMax = this.#bytes.reduce((max, bytes) => Math.max(max, bytes.length), 1);
    this.#control = new SpecialSplitter(vocabulary, [tokenType.CONTROL, tokenType.USER_DEFINED]);
    this.#userDefined = new SpecialSplitter(vocabulary, [tokenType.USER_DEFINED]);
  }

  /** @throws KvError TOKENIZER_UNSUPPORTED, TOKENIZER_BROKEN */
  static fromMetadata(metadata: Readonly<Record<string, GgufValue>>): Tokenizer {
    return new Tokenizer(readVocabulary(metadata));
  }

  get vocabSize(): number {
    return this.vocabulary.tokens.length;
  }

  get bosId(): number | undefined {
    return this.vocabulary.bosId;
  }

  get eosIds(): readonly number[] {
    return this.vocabulary.eosIds;
  }

  /** True for tokens that give no text while special tokens are skipped. */
  isSpecial(id: number): boolean {
    return this.vocabulary.types[id] === tokenType.CONTROL;
  }

  /** The token's own bytes, possibly half a character. */
  bytesOf(id: number): Uint8Array {
    return this.#bytes[id] ?? new Uint8Array();
  }

  /** Control tokens' texts, the ones that user text must not be able to forge. */
  get controlTexts(): readonly string[] {
    return this.vocabulary.tokens.filter((_, id) => this.isSpecial(id));
  }

  /**
   * On the calling thread. decode(encode(x)) is x for every well-formed text.
   * @throws KvError PROMPT_TOO_LONG, PROMPT_UNBROKEN
   */
  encode(text: string, options: EncodeOptions): number[] {
    this.#refuseEarly(text, options);
    const ids: number[] = [];
    const sections = options.specials ? this.#control.split(text) : [text];
    for (const section of sections) {
      if (typeof section === "number") ids.push(section);
      else this.#encodeText(withoutGuard(section, options), ids, options.limit);
    }
    refuseAbove(ids.length, options.limit);
    return ids;
  }

  /** As `encode`; long texts in a thread of the process's pool. */
  async encodeAsync(text: string, options: EncodeOptions, signal?: AbortSignal): Promise<number[]> {
    const bytes = Buffer.byteLength(text);
    if (bytes <= THREAD_BYTES) return this.encode(text, options);
    this.#refuseEarly(text, options);
    const ids = await tokenizeInThread({ vocabulary: this.vocabulary, text, options }, signal);
    return ids ?? this.encode(text, options);
  }

  /** Half characters at either end become U+FFFD. */
  decode(ids: readonly number[], options: { readonly skipSpecials?: boolean } = {}): string {
    const parts = ids.filter((id) => !(options.skipSpecials && this.isSpecial(id))).map((id) => this.bytesOf(id));
    return this.#textDecoder.decode(Buffer.concat(parts));
  }

  #encodeText(text: string, ids: number[], limit: TokenLimit | undefined): void {
    for (const section of this.#userDefined.split(text)) {
      if (typeof section === "number") {
        ids.push(section);
        continue;
      }
      for (const piece of pieces(section)) {
        if (piece.length > UNBROKEN_CHARS_MAX + PIECE_CHARS) {
          throw new KvError("PROMPT_UNBROKEN", { chars: piece.length, limit: UNBROKEN_CHARS_MAX });
        }
        for (const id of this.#library.encode(piece, { add_special_tokens: false }).ids) ids.push(id);
        refuseAbove(ids.length, limit);
      }
    }
  }

  /** No token is longer than #tokenBytesMax: a 10 MB prompt is refused without being tokenised. */
  #refuseEarly(text: string, options: EncodeOptions): void {
    if (options.limit === undefined) return;
    const bytes = Buffer.byteLength(withoutGuard(text, options));
    refuseAbove(Math.ceil(bytes / this.#tokenBytesMax), options.limit);
  }
}

const withoutGuard = (text: string, { guard }: EncodeOptions): string =>
  guard === undefined ? text : text.replaceAll(guard, "");

function refuseAbove(tokens: number, limit: TokenLimit | undefined): void {
  if (limit === undefined || tokens <= limit.tokens) return;
  throw new KvError("PROMPT_TOO_LONG", { tokens: `at least ${tokens}`, limit: limit.tokens, by: limit.name });
}

function buildLibraryTokenizer(vocabulary: Vocabulary): LibraryTokenizer {
  const { steps, ignoreMerges } = preTokenizers[vocabulary.kind];
  // No prototype: a token may be called __proto__.
  const vocab: Record<string, number> = Object.create(null);
  for (const [id, token] of vocabulary.tokens.entries()) {
    if (isPlain(vocabulary.types[id])) vocab[token] = id;
  }
  return new LibraryTokenizer(
    {
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: {
        type: "Sequence",
        pretokenizers: [...steps, { type: "ByteLevel", add_prefix_space: false, use_regex: false }],
      },
      model: { type: "BPE", vocab, merges: vocabulary.merges, ignore_merges: ignoreMerges },
      post_processor: null,
      decoder: { type: "ByteLevel" },
    },
    { clean_up_tokenization_spaces: false },
  );
}
