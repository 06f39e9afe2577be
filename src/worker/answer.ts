import type { Ending, GenerationParams, TokenLogprob } from "../openai/index.ts";
import type { Sample } from "./engine.ts";
import type { Finish, TokenListener } from "./request.ts";
import { IncrementalDetokenizer, StopStrings, type TokenBytes } from "./text/index.ts";

/** What one output token adds to an answer. */
export interface AnswerPiece {
  /** Text that is certain now; what may begin a stop string or is half a character comes later. */
  readonly text: string;
  /** With logprobs: the tokens that came in since the last piece. */
  readonly logprobs: readonly TokenLogprob[];
  /** UTF-16 units of all text before the first of `logprobs`, held back text included. */
  readonly offset: number;
  readonly ending: Ending | null;
}

/** Turns the tokens of one request into pieces of text. The scheduler asks it, token by token, whether the answer ends. */
export class Answer {
  readonly #params: GenerationParams;
  readonly #tokens: TokenBytes;
  readonly #detokenizer: IncrementalDetokenizer;
  readonly #stops: StopStrings;
  readonly #onPiece: (piece: AnswerPiece) => void;
  #units = 0;

  constructor(params: GenerationParams, tokens: TokenBytes, onPiece: (piece: AnswerPiece) => void) {
    this.#params = params;
    this.#tokens = tokens;
    this.#detokenizer = new IncrementalDetokenizer(tokens, { skipSpecials: params.skipSpecialTokens });
    this.#stops = new StopStrings(params.stop, { include: params.includeStop });
    this.#onPiece = onPiece;
  }

  readonly onToken: TokenListener = (sample, index, finish) => {
    // The token that ends the answer is no part of its text, nor of its log probabilities, unless asked for.
    const isShown = finish?.reason !== "stop" || this.#params.includeStop;
    const offset = this.#units;
    const fresh = isShown ? this.#detokenizer.push(sample.token) : "";
    this.#units += fresh.length;
    const watched = this.#watch(fresh, index);
    let { text } = watched;
    const end: Finish | null = watched.stopped === undefined ? finish : { reason: "stop", stop: watched.stopped };
    if (end !== null && watched.stopped === undefined) text += this.#rest();
    this.#onPiece({
      text,
      logprobs: isShown && this.#params.sampling.logprobs >= 0 ? [this.#logprob(sample)] : [],
      offset,
      ending: end === null ? null : { finishReason: end.reason, stopReason: end.stop },
    });
    return end;
  };

  /** Stop strings count from min_tokens on. */
  #watch(text: string, index: number) {
    return index + 1 < this.#params.minTokens ? { text, stopped: undefined } : this.#stops.push(text);
  }

  #rest(): string {
    const tail = this.#stops.push(this.#detokenizer.flush());
    return tail.text + this.#stops.flush();
  }

  #logprob({ token, logprobs }: Sample): TokenLogprob {
    const bytesOf = (id: number): Uint8Array => this.#tokens.bytesOf(id);
    return {
      bytes: bytesOf(token),
      hidden: this.#params.skipSpecialTokens && this.#tokens.isSpecial(token),
      // A hand-off that brought none: the wire has no better word for "unknown" than a probability of nothing.
      logprob: logprobs?.logprob ?? Number.NEGATIVE_INFINITY,
      top: (logprobs?.top ?? []).map((entry) => ({ bytes: bytesOf(entry.token), logprob: entry.logprob })),
    };
  }
}
