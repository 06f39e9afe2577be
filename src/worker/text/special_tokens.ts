import type { Vocabulary } from "./vocabulary.ts";

/** Finds whole tokens in a text: leftmost first, then longest. One character is no name: user text could not be guarded against it. */
export class SpecialSplitter {
  readonly #ids: ReadonlyMap<string, number>;
  readonly #pattern: RegExp | undefined;

  constructor(vocabulary: Vocabulary, types: readonly number[]) {
    this.#ids = new Map(
      vocabulary.tokens.flatMap((token, id) =>
        token.length > 1 && types.includes(vocabulary.types[id] ?? 0) ? [[token, id] as const] : [],
      ),
    );
    const longestFirst = [...this.#ids.keys()].sort((a, b) => b.length - a.length);
    this.#pattern = anyOf(longestFirst, "gu");
  }

  split(text: string): (string | number)[] {
    if (this.#pattern === undefined) return text === "" ? [] : [text];
    const sections: (string | number)[] = [];
    let from = 0;
    for (const match of text.matchAll(this.#pattern)) {
      if (match.index > from) sections.push(text.slice(from, match.index));
      sections.push(this.#ids.get(match[0]) ?? 0);
      from = match.index + match[0].length;
    }
    if (from < text.length) sections.push(text.slice(from));
    return sections;
  }
}

/** Control tokens as user text must not hold them. */
export class ControlTokens {
  readonly #texts: readonly string[];
  readonly #pattern: RegExp | undefined;

  constructor(texts: readonly string[]) {
    this.#texts = texts.filter((text) => text !== "");
    // One pattern: a search for each of hundreds of tokens would read a long text hundreds of times.
    this.#pattern = anyOf(this.#texts, "g");
  }

  /**
   * Puts `guard` into every control token of the text, into a beginning of one at the text's end, and into an end of one at the text's
   * start, so that neither the text alone nor the text among other text holds a control token.
   */
  guard(text: string, guard: string): string {
    const places = this.#borderPlaces(text);
    for (const start of this.#starts(text)) places.add(start + 1);
    let guarded = "";
    let from = 0;
    for (const place of [...places].sort((a, b) => a - b)) {
      guarded += text.slice(from, place) + guard;
      from = place;
    }
    return guarded + text.slice(from);
  }

  /** Where a control token begins, inside another one too. */
  *#starts(text: string): Generator<number> {
    if (this.#pattern === undefined) return;
    this.#pattern.lastIndex = 0;
    for (let match = this.#pattern.exec(text); match !== null; match = this.#pattern.exec(text)) {
      yield match.index;
      this.#pattern.lastIndex = match.index + 1;
    }
  }

  #borderPlaces(text: string): Set<number> {
    const places = new Set<number>();
    for (const token of this.#texts) {
      for (let length = 1; length < token.length && length <= text.length; length++) {
        if (text.endsWith(token.slice(0, length))) places.add(text.length - length + 1);
        if (text.startsWith(token.slice(token.length - length))) places.add(length - 1);
      }
    }
    return places;
  }
}

function anyOf(texts: readonly string[], flags: string): RegExp | undefined {
  if (texts.length === 0) return undefined;
  return new RegExp(texts.map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), flags);
}
