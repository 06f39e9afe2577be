import { KvError } from "../../errors.ts";
import type { GgufValue } from "../../native/engine_binding.ts";
import { type PreTokenizerKind, preTokenizerNames } from "./pre_tokenizers.ts";

/** The tokenizer of a GGUF file, checked; plain data, so that a worker thread can have a copy. */
export interface Vocabulary {
  readonly kind: PreTokenizerKind;
  /** By id, in the byte-level alphabet. */
  readonly tokens: readonly string[];
  /** By id, see `tokenType`. */
  readonly types: readonly number[];
  readonly merges: readonly string[];
  readonly bosId: number | undefined;
  /** Ids that end an answer. */
  readonly eosIds: readonly number[];
  /** The model wants its bos in front of a plain prompt. */
  readonly addBos: boolean;
}

/** Values of `tokenizer.ggml.token_type`. */
export const tokenType = { NORMAL: 1, UNKNOWN: 2, CONTROL: 3, USER_DEFINED: 4, UNUSED: 5, BYTE: 6 } as const;

/** Names of control tokens that end a turn in the model families at hand; files often name one end token and mean more. */
const endTokenNames: ReadonlySet<string> = new Set([
  "<|endoftext|>",
  "<|im_end|>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|end_of_text|>",
  "<|end|>",
  "<|eot|>",
  "<|return|>",
  "<end_of_turn>",
  "</s>",
]);

type Metadata = Readonly<Record<string, GgufValue>>;

/** @throws KvError TOKENIZER_UNSUPPORTED for a kind we don't know, TOKENIZER_BROKEN for contradictions */
export function readVocabulary(metadata: Metadata): Vocabulary {
  const model = metadata["tokenizer.ggml.model"];
  if (model !== "gpt2") {
    throw new KvError("TOKENIZER_UNSUPPORTED", { key: "tokenizer.ggml.model", value: shown(model), known: "gpt2" });
  }
  const pre = metadata["tokenizer.ggml.pre"] ?? "default";
  const kind = typeof pre === "string" ? preTokenizerNames.get(pre) : undefined;
  if (kind === undefined) {
    const known = [...preTokenizerNames.keys()].join(", ");
    throw new KvError("TOKENIZER_UNSUPPORTED", { key: "tokenizer.ggml.pre", value: shown(pre), known });
  }
  const tokens = strings(metadata, "tokenizer.ggml.tokens");
  const types = metadata["tokenizer.ggml.token_type"] ?? tokens.map(() => tokenType.NORMAL);
  if (!Array.isArray(types) || types.length !== tokens.length || !types.every((type) => typeof type === "number")) {
    throw broken(`tokenizer.ggml.token_type must hold ${tokens.length} numbers, one a token`);
  }
  const merges = strings(metadata, "tokenizer.ggml.merges");
  checkMerges(tokens, types, merges);
  const id = (key: string): number | undefined => tokenIdAt(metadata, key, tokens.length);
  const eos = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"].map(id);
  const named = tokens.flatMap((token, at) =>
    types[at] === tokenType.CONTROL && endTokenNames.has(token) ? [at] : [],
  );
  return {
    kind,
    tokens,
    types,
    merges,
    bosId: id("tokenizer.ggml.bos_token_id"),
    eosIds: [...new Set([...eos.filter((at) => at !== undefined), ...named])],
    addBos: metadata["tokenizer.ggml.add_bos_token"] === true,
  };
}

/** Tokens that text can become: all but those that only the template or a client's explicit wish may name. */
export const isPlain = (type: number | undefined): boolean =>
  type !== tokenType.CONTROL && type !== tokenType.UNKNOWN && type !== tokenType.UNUSED;

/** A merge into no token would lose text in silence; a byte without a token does too, but real files have those (SmolLM2: 0x04). */
function checkMerges(tokens: readonly string[], types: readonly number[], merges: readonly string[]): void {
  const plain = new Set(tokens.filter((_, at) => isPlain(types[at])));
  for (const merge of merges) {
    const space = merge.indexOf(" ", 1);
    const merged = merge.slice(0, space) + merge.slice(space + 1);
    if (space === -1 || !plain.has(merged)) throw broken(`merge ${shown(merge)} gives no token`);
  }
}

/** GPT-2's printable stand-in for each byte: itself where it prints in Latin-1, else the next character from U+0100 on. */
export const byteAlphabet: readonly string[] = (() => {
  const prints = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(prints(byte) ? byte : next++));
})();

const byteOf: ReadonlyMap<string, number> = new Map(byteAlphabet.map((character, byte) => [character, byte]));

/** The bytes a token stands for. Special tokens are written as themselves, not in the byte alphabet. */
export function tokenBytes(token: string, type: number | undefined): Uint8Array {
  if (type === tokenType.NORMAL || type === tokenType.BYTE) {
    const bytes = Array.from(token, (character) => byteOf.get(character));
    if (bytes.every((byte) => byte !== undefined)) return Uint8Array.from(bytes);
  }
  return new TextEncoder().encode(token);
}

function strings(metadata: Metadata, key: string): readonly string[] {
  const value = metadata[key];
  if (!Array.isArray(value) || !value.every((item) => typeof item === "string")) {
    throw broken(`${key} must be a list of strings`);
  }
  return value;
}

function tokenIdAt(metadata: Metadata, key: string, size: number): number | undefined {
  const raw = metadata[key];
  if (raw === undefined) return undefined;
  const value = typeof raw === "bigint" ? Number(raw) : raw;
  if (typeof value !== "number" || value < 0 || value >= size) {
    throw broken(`${key} = ${shown(value)} is outside the vocabulary of ${size}`);
  }
  return value;
}

const broken = (why: string): KvError => new KvError("TOKENIZER_BROKEN", { why });

const shown = (value: GgufValue | undefined): string =>
  value === undefined ? "(missing)" : typeof value === "string" ? JSON.stringify(value.slice(0, 64)) : String(value);
