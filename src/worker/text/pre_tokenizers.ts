/** How a text is cut into words before byte-pair merging; named as `tokenizer.ggml.pre` names it. */
export type PreTokenizerKind = "gpt2" | "smollm" | "llama-bpe" | "qwen2";

interface SplitStep {
  readonly type: "Split";
  readonly pattern: { readonly Regex: string };
  readonly behavior: "Isolated";
  readonly invert: false;
}

const split = (pattern: string): SplitStep => ({
  type: "Split",
  pattern: { Regex: pattern },
  behavior: "Isolated",
  invert: false,
});

const GPT2_WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const wordsWithDigits = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/** `ignoreMerges`: a word that is a token as a whole is taken as it is. */
export const preTokenizers: Readonly<
  Record<PreTokenizerKind, { readonly steps: readonly SplitStep[]; readonly ignoreMerges: boolean }>
> = {
  gpt2: { steps: [split(GPT2_WORDS)], ignoreMerges: false },
  smollm: { steps: [split("\\p{N}"), split(GPT2_WORDS)], ignoreMerges: false },
  "llama-bpe": { steps: [split(wordsWithDigits("\\p{N}{1,3}"))], ignoreMerges: true },
  qwen2: { steps: [split(wordsWithDigits("\\p{N}"))], ignoreMerges: false },
};

/** Values of `tokenizer.ggml.pre` that we know; files without the key are GPT-2's (docs/decisions/014-tokenizer-from-gguf.md). */
export const preTokenizerNames: ReadonlyMap<string, PreTokenizerKind> = new Map([
  ["default", "gpt2"],
  ["gpt2", "gpt2"],
  ["gpt-2", "gpt2"],
  ["smollm", "smollm"],
  ["llama-bpe", "llama-bpe"],
  ["llama3", "llama-bpe"],
  ["llama-v3", "llama-bpe"],
  ["qwen2", "qwen2"],
]);

/** Texts are tokenised in pieces of about this many characters, so that a limit on tokens ends the work early. */
export const PIECE_CHARS = 16_384;

/**
 * Cuts a text where every pre-tokenizer above has a boundary whatever stands around: behind a letter that no letter follows. No
 * pattern has anything behind its letters, and none looks back, so the pieces give the tokens of the whole.
 */
export function* pieces(text: string): Generator<string> {
  let from = 0;
  while (text.length - from > PIECE_CHARS) {
    const cut = safeCut(text, from + PIECE_CHARS);
    if (cut === -1) break;
    yield text.slice(from, cut);
    from = cut;
  }
  if (from < text.length) yield text.slice(from);
}

function safeCut(text: string, from: number): number {
  const wordEnd = /\p{L}(?=\P{L})/gu;
  wordEnd.lastIndex = from;
  return wordEnd.exec(text) === null ? -1 : wordEnd.lastIndex;
}
