/** Where a value stands in a JSON text: `text.slice(start, end)`. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPEN_BRACE = 0x7b;
const OPEN_BRACKET = 0x5b;

const isSpace = (code: number): boolean => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;

/**
 * Finds the raw text of one value of the outermost object. Strings are jumped over with `indexOf`, so a body of megabytes costs
 * little; a key counts by its meaning (escapes resolved), and of repeated keys the last one counts, as in JSON.parse.
 * @param text JSON that JSON.parse has accepted: nothing is validated here
 */
export function topLevelValueSpan(text: string, key: string): Span | undefined {
  let at = skipSpace(text, 0);
  if (text.charCodeAt(at) !== OPEN_BRACE) return undefined;
  at = skipSpace(text, at + 1);
  let found: Span | undefined;
  while (text.charCodeAt(at) === QUOTE) {
    const keyStart = at;
    const keyEnd = stringEnd(text, at);
    at = skipSpace(text, keyEnd);
    if (text.charCodeAt(at) !== COLON) return undefined;
    const start = skipSpace(text, at + 1);
    const end = valueEnd(text, start);
    if (isKey(text, keyStart, keyEnd, key)) found = { start, end };
    at = skipSpace(text, end);
    if (text.charCodeAt(at) !== COMMA) break;
    at = skipSpace(text, at + 1);
  }
  return found;
}

/**
 * Whether a JSON text holds more than `limit` objects, lists and fields: what memory and time of a parsed body go by, where a string
 * of megabytes is one value. Numbers in lists are not counted. Of a text that is no JSON the answer means nothing.
 */
export function hasMoreStructures(text: string, limit: number): boolean {
  const marks = /["[{:]/g;
  let count = 0;
  for (let mark = marks.exec(text); mark !== null; mark = marks.exec(text)) {
    if (text.charCodeAt(mark.index) === QUOTE) marks.lastIndex = stringEnd(text, mark.index);
    else if (++count > limit) return true;
  }
  return false;
}

function isKey(text: string, start: number, end: number, key: string): boolean {
  // An escape makes one character of up to six: longer than that is another key, and not worth unescaping.
  if (end - start - 2 > key.length * 6) return false;
  return JSON.parse(text.slice(start, end)) === key;
}

function skipSpace(text: string, from: number): number {
  let at = from;
  while (isSpace(text.charCodeAt(at))) at++;
  return at;
}

/** Position behind the closing quote of the string that opens at `from`. */
export function stringEnd(text: string, from: number): number {
  let quote = text.indexOf('"', from + 1);
  while (quote !== -1) {
    let backslashes = 0;
    while (text.charCodeAt(quote - 1 - backslashes) === BACKSLASH) backslashes++;
    if (backslashes % 2 === 0) return quote + 1;
    quote = text.indexOf('"', quote + 1);
  }
  return text.length;
}

/** Position behind the value that starts at `from`; no recursion, so nesting costs no stack, and from mark to mark it is V8 that looks. */
function valueEnd(text: string, from: number): number {
  const first = text.charCodeAt(from);
  if (first === QUOTE) return stringEnd(text, from);
  const isScalar = first !== OPEN_BRACE && first !== OPEN_BRACKET;
  const marks = isScalar ? /[,}\]\s]/g : /["{}[\]]/g;
  marks.lastIndex = from;
  let depth = 0;
  for (let mark = marks.exec(text); mark !== null; mark = marks.exec(text)) {
    if (isScalar) return mark.index;
    const code = text.charCodeAt(mark.index);
    if (code === QUOTE) marks.lastIndex = stringEnd(text, mark.index);
    else if (code === OPEN_BRACE || code === OPEN_BRACKET) depth++;
    else if (--depth === 0) return marks.lastIndex;
  }
  return text.length;
}
