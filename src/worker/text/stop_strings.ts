/** Text that may be sent, and the stop string that ended the answer. */
export interface StopResult {
  readonly text: string;
  readonly stopped?: string;
}

/** One stop string with its Knuth-Morris-Pratt table, so that each character costs constant time. */
interface Needle {
  readonly text: string;
  /** border[n]: length of the longest proper prefix of the first n characters that is also their suffix. */
  readonly border: Int32Array;
  matched: number;
}

/**
 * Watches the text of an answer, in any pieces, for stop strings. The one that is complete first ends it, of several complete at
 * the same character the longest; what may be the beginning of one is held back until it is or isn't.
 */
export class StopStrings {
  readonly #needles: readonly Needle[];
  readonly #include: boolean;
  #held = "";
  #stopped = false;

  /** @param include the stop string stays at the end of the text (`include_stop_str_in_output`) */
  constructor(stops: readonly string[], options: { readonly include: boolean } = { include: false }) {
    this.#needles = stops.filter((text) => text !== "").map((text) => ({ text, border: borders(text), matched: 0 }));
    this.#include = options.include;
  }

  /** After a stop nothing comes any more. */
  push(text: string): StopResult {
    if (this.#stopped) return { text: "" };
    if (this.#needles.length === 0) return { text };
    const seen = this.#held + text;
    for (let at = this.#held.length; at < seen.length; at++) {
      const stopped = this.#advance(seen.charCodeAt(at));
      if (stopped === undefined) continue;
      this.#stopped = true;
      this.#held = "";
      return { text: seen.slice(0, at + 1 - (this.#include ? 0 : stopped.length)), stopped };
    }
    const held = this.#needles.reduce((max, needle) => Math.max(max, needle.matched), 0);
    this.#held = seen.slice(seen.length - held);
    return { text: seen.slice(0, seen.length - held) };
  }

  /** The answer ended otherwise: what was held back is text. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** @returns the longest stop string that this character completes */
  #advance(unit: number): string | undefined {
    let complete: string | undefined;
    for (const needle of this.#needles) {
      let length = needle.matched;
      while (length > 0 && needle.text.charCodeAt(length) !== unit) length = needle.border[length] ?? 0;
      if (needle.text.charCodeAt(length) === unit) length++;
      needle.matched = length;
      if (length === needle.text.length && length > (complete?.length ?? 0)) complete = needle.text;
    }
    return complete;
  }
}

function borders(text: string): Int32Array {
  const border = new Int32Array(text.length + 1);
  let length = 0;
  for (let at = 1; at < text.length; at++) {
    while (length > 0 && text.charCodeAt(at) !== text.charCodeAt(length)) length = border[length] ?? 0;
    if (text.charCodeAt(at) === text.charCodeAt(length)) length++;
    border[at + 1] = length;
  }
  return border;
}
