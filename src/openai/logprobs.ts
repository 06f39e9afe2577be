/** One token of an answer with its log probabilities. `bytes` are the token's own, possibly half a character. */
export interface TokenLogprob {
  readonly bytes: Uint8Array;
  readonly logprob: number;
  /** A special token that gives no text while special tokens are skipped. */
  readonly hidden?: boolean;
  /** Likeliest first. */
  readonly top: readonly { readonly bytes: Uint8Array; readonly logprob: number }[];
}

/** `choices[].logprobs` of /v1/completions. */
export interface CompletionLogprobs {
  readonly tokens: readonly string[];
  readonly token_logprobs: readonly number[];
  readonly top_logprobs: readonly Readonly<Record<string, number>>[] | null;
  /** Character (UTF-16 unit) where each token begins in the answer's text. */
  readonly text_offset: readonly number[];
}

export interface ChatTokenLogprob {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[];
}

/** `choices[].logprobs` of /v1/chat/completions. */
export interface ChatLogprobs {
  readonly content: readonly (ChatTokenLogprob & { readonly top_logprobs: readonly ChatTokenLogprob[] })[];
  readonly refusal: null;
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The token as text; half characters as `bytes:\xe2\x82`, so that two tokens never look alike. */
export const tokenText = (bytes: Uint8Array): string =>
  wholeText(bytes) ?? `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;

function wholeText(bytes: Uint8Array): string | undefined {
  try {
    return strict.decode(bytes);
  } catch {
    return undefined;
  }
}

/**
 * @param tops alternatives a token that the client asked for (0: `top_logprobs` is null)
 * @param offset where the first token begins; tokens that complete no character begin where that character does
 */
export function completionLogprobs(tokens: readonly TokenLogprob[], tops: number, offset: number): CompletionLogprobs {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const offsets: number[] = [];
  let at = offset;
  for (const { bytes, hidden } of tokens) {
    const text = hidden ? "" : decoder.decode(bytes, { stream: true });
    // Before a whole token may come the replacement of an earlier one that stayed half a character.
    const own = hidden ? "" : (wholeText(bytes) ?? text);
    offsets.push(at + Math.max(0, text.length - own.length));
    at += text.length;
  }
  return {
    tokens: tokens.map(({ bytes }) => tokenText(bytes)),
    token_logprobs: tokens.map(({ logprob }) => finite(logprob)),
    top_logprobs:
      tops === 0
        ? null
        : tokens.map(({ top }) =>
            Object.fromEntries(top.slice(0, tops).map((entry) => [tokenText(entry.bytes), finite(entry.logprob)])),
          ),
    text_offset: offsets,
  };
}

export function chatLogprobs(tokens: readonly TokenLogprob[], tops: number): ChatLogprobs {
  const entry = (bytes: Uint8Array, logprob: number): ChatTokenLogprob => ({
    token: tokenText(bytes),
    logprob: finite(logprob),
    bytes: Array.from(bytes),
  });
  return {
    content: tokens.map(({ bytes, logprob, top }) => ({
      ...entry(bytes, logprob),
      top_logprobs: top.slice(0, tops).map((other) => entry(other.bytes, other.logprob)),
    })),
    refusal: null,
  };
}

/** JSON has no infinity: OpenAI writes -9999 for a probability of nothing. */
const finite = (logprob: number): number => (Number.isFinite(logprob) ? logprob : -9999);
