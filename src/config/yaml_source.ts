import { isAlias, isMap, isScalar, isSeq, Lexer, LineCounter, type Node, parseAllDocuments } from "yaml";
import type { Place, Problems } from "./problems.ts";

// A configuration is written by hand; these bound what a broken or hostile file can cost.
const LARGEST_FILE_BYTES = 1 << 20;
const DEEPEST_NESTING = 32;
const MOST_NODES = 50_000;

export type Path = readonly (string | number)[];
export type YamlValue = string | number | boolean | null | YamlValue[] | YamlMap;
export interface YamlMap {
  [key: string]: YamlValue;
}

export const isYamlMap = (value: unknown): value is YamlMap =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** `context_servers.urls[1]` */
export const dotted = (path: Path): string =>
  path.map((part, i) => (typeof part === "number" ? `[${part}]` : i === 0 ? part : `.${part}`)).join("");

const pathKey = (path: Path): string => JSON.stringify(path);

interface Positions {
  readonly key: number;
  readonly value: number;
}

/**
 * One YAML 1.2 file as plain data that still knows where everything stands. Keys can be renamed and taken out; places follow.
 */
export class YamlSource {
  readonly file: string;
  readonly root: YamlMap;
  readonly #lines: readonly string[];
  readonly #counter: LineCounter;
  readonly #positions: Map<string, Positions>;

  private constructor(file: string, text: string, counter: LineCounter) {
    this.file = file;
    this.root = Object.create(null) as YamlMap;
    this.#lines = text.split(/\r\n|\n|\r/);
    this.#counter = counter;
    this.#positions = new Map();
  }

  /** Never throws: what is wrong goes to `problems`, and the rest of the file is still read. */
  static parse(file: string, text: string, problems: Problems): YamlSource {
    const counter = new LineCounter();
    const source = new YamlSource(file, text, counter);
    source.#read(text, problems);
    return source;
  }

  #read(text: string, problems: Problems): void {
    if (Buffer.byteLength(text) > LARGEST_FILE_BYTES) {
      problems.add("error", "", `the file is larger than ${LARGEST_FILE_BYTES} bytes`, this.placeAt(0));
      return;
    }
    const deep = tooDeepAt(text);
    if (deep !== undefined) {
      this.#countLines(text);
      problems.add("error", "", `nested more than ${DEEPEST_NESTING} levels deep`, this.placeAt(deep));
      return;
    }
    let documents: ReturnType<typeof parseAllDocuments>;
    try {
      documents = parseAllDocuments(text, {
        version: "1.2",
        lineCounter: this.#counter,
        prettyErrors: false,
        logLevel: "silent",
        uniqueKeys: true,
        strict: true,
      });
    } catch (thrown) {
      // Nothing is known to end here; if something does, it is the file's fault and no defect to show a stack for.
      const why = thrown instanceof Error ? thrown.message : String(thrown);
      problems.add("error", "", `the file can't be read: ${why}`, this.placeAt(0));
      return;
    }
    const list = Array.isArray(documents) ? documents : [];
    for (const document of list) {
      // An unresolved tag is only a warning to the parser; a safe load knows no tags of other languages.
      for (const error of [...document.errors, ...document.warnings]) {
        const place = this.placeAt(error.pos[0]);
        problems.add("error", "", sentence(error.code, error.message, place), place);
      }
    }
    const [first, second] = list;
    if (second?.range) {
      problems.add("error", "", "one YAML document a file; a second one starts here", this.placeAt(second.range[0]));
    }
    if (!first?.contents || (isScalar(first.contents) && first.contents.value === null)) return;
    if (!isMap(first.contents)) {
      const at = first.contents.range?.[0] ?? 0;
      problems.add("error", "", "the file must be a map of keys and values", this.placeAt(at));
      return;
    }
    const anchors = anchorsOf(first.contents);
    new Reader(this, this.#positions, problems, anchors).fill(first.contents, this.root, []);
  }

  #countLines(text: string): void {
    this.#counter.addNewLine(0);
    for (const match of text.matchAll(/\n/g)) this.#counter.addNewLine(match.index + 1);
  }

  placeAt(offset: number): Place {
    // Reading stopped early when the counter has no lines yet.
    const { line, col } = this.#counter.lineStarts.length > 0 ? this.#counter.linePos(offset) : { line: 1, col: 1 };
    return {
      file: this.file,
      line: Math.max(1, line),
      column: Math.max(1, col),
      text: this.#lines[Math.max(1, line) - 1] ?? "",
    };
  }

  has(path: Path): boolean {
    return this.#positions.has(pathKey(path));
  }

  /** Where the key stands; for a path that is not in the file, its nearest parent that is. */
  placeOfKey(path: Path): Place {
    return this.#place(path, "key");
  }

  placeOfValue(path: Path): Place {
    return this.#place(path, "value");
  }

  #place(path: Path, which: keyof Positions): Place {
    for (let length = path.length; length > 0; length--) {
      const positions = this.#positions.get(pathKey(path.slice(0, length)));
      // Of a missing child the parent's key says more than the parent's value.
      if (positions) return this.placeAt(length === path.length ? positions[which] : positions.key);
    }
    return this.placeAt(0);
  }

  get(path: Path): YamlValue | undefined {
    let value: YamlValue | undefined = this.root;
    for (const part of path) {
      if (Array.isArray(value) && typeof part === "number") value = value[part];
      else if (isYamlMap(value) && typeof part === "string" && Object.hasOwn(value, part)) value = value[part];
      else return undefined;
    }
    return value;
  }

  /** Takes a key out of the tree; its place stays known. */
  remove(path: Path): void {
    const parent = this.get(path.slice(0, -1));
    if (isYamlMap(parent)) delete parent[String(path.at(-1))];
  }

  set(path: Path, value: YamlValue): void {
    const parent = this.get(path.slice(0, -1));
    if (isYamlMap(parent)) parent[String(path.at(-1))] = value;
  }

  /** Gives the key `from` the name `to` (in the same map). */
  rename(section: Path, from: string, to: string): void {
    const value = this.get([...section, from]);
    const positions = this.#positions.get(pathKey([...section, from]));
    if (value === undefined || !positions) return;
    this.remove([...section, from]);
    this.set([...section, to], value);
    this.#positions.set(pathKey([...section, to]), positions);
  }
}

/** The parser's messages are sentences; the one that users meet most gets the key's name. */
function sentence(code: string, message: string, place: Place): string {
  if (code !== "DUPLICATE_KEY") return message.split("\n")[0] ?? message;
  const [key = "a key"] = /^[^\s:]+/.exec(place.text.slice(place.column - 1)) ?? [];
  return `${key} is given twice in this map; keep one`;
}

// Marks that the lexer puts between tokens; they stand for no text.
const isMark = (token: string): boolean => token === "\u0002" || token === "\u0018" || token === "\u001f";

/**
 * Offset where brackets, or dashes of one line, nest deeper than any configuration does. The parser is recursive and a thousand
 * levels exhaust its stack, so this is asked before it runs.
 */
function tooDeepAt(text: string): number | undefined {
  let offset = 0;
  let brackets = 0;
  let dashes = 0;
  for (const token of new Lexer().lex(text)) {
    if (isMark(token)) continue;
    if (token === "[" || token === "{") brackets++;
    else if (token === "]" || token === "}") brackets--;
    else if (token === "-" || token === "?" || token === ":") dashes++;
    else if (token.includes("\n")) dashes = 0;
    if (brackets > DEEPEST_NESTING || dashes > DEEPEST_NESTING) return offset;
    offset += token.length;
  }
  return undefined;
}

function anchorsOf(root: Node): Map<string, Node> {
  const found = new Map<string, Node>();
  const stack: unknown[] = [root];
  for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
    if (isScalar(node) || isMap(node) || isSeq(node)) {
      if (node.anchor !== undefined && !found.has(node.anchor)) found.set(node.anchor, node);
    }
    if (isMap(node)) for (const pair of node.items) stack.push(pair.value, pair.key);
    else if (isSeq(node)) stack.push(...node.items);
  }
  return found;
}

/** Turns nodes into plain data and remembers offsets. */
class Reader {
  readonly #source: YamlSource;
  readonly #positions: Map<string, Positions>;
  readonly #problems: Problems;
  readonly #anchors: ReadonlyMap<string, Node>;
  #nodes = 0;

  constructor(
    source: YamlSource,
    positions: Map<string, Positions>,
    problems: Problems,
    anchors: ReadonlyMap<string, Node>,
  ) {
    this.#source = source;
    this.#positions = positions;
    this.#problems = problems;
    this.#anchors = anchors;
  }

  fill(map: Node, target: YamlMap, path: Path): void {
    if (!isMap(map)) return;
    for (const pair of map.items) {
      const keyNode = pair.key;
      const offset = (isScalar(keyNode) ? keyNode.range?.[0] : undefined) ?? map.range?.[0] ?? 0;
      if (!isScalar(keyNode) || typeof keyNode.value !== "string") {
        const shown = isScalar(keyNode) ? String(keyNode.value) : "this key";
        this.#fail(offset, path, `${shown} must be a name: put it in quotes`);
        continue;
      }
      const child = [...path, keyNode.value];
      const value = pair.value as Node | null;
      this.#positions.set(pathKey(child), { key: offset, value: value?.range?.[0] ?? offset });
      target[keyNode.value] = this.#value(value, child, offset);
    }
  }

  #value(node: Node | null, path: Path, offset: number): YamlValue {
    const at = node?.range?.[0] ?? offset;
    if (++this.#nodes > MOST_NODES) {
      if (this.#nodes === MOST_NODES + 1) this.#fail(at, path, "the file expands to too many values (anchors?)");
      return null;
    }
    if (path.length > DEEPEST_NESTING) {
      this.#fail(at, path.slice(0, 2), `nested more than ${DEEPEST_NESTING} levels deep`);
      return null;
    }
    if (node === null) return null;
    if (isAlias(node)) {
      const target = this.#anchors.get(node.source);
      if (target) return this.#value(target, path, offset);
      this.#fail(at, path, `there is no anchor ${node.source}`);
      return null;
    }
    if (isScalar(node)) {
      const { value } = node;
      if (value === null || typeof value === "string" || typeof value === "number" || typeof value === "boolean") {
        return value;
      }
      return String(value);
    }
    if (isSeq(node)) {
      return node.items.map((item, i) => {
        const child = [...path, i];
        const start = (item as Node | null)?.range?.[0] ?? at;
        this.#positions.set(pathKey(child), { key: start, value: start });
        return this.#value(item as Node | null, child, start);
      });
    }
    const map = Object.create(null) as YamlMap;
    this.fill(node, map, path);
    return map;
  }

  #fail(offset: number, path: Path, text: string): void {
    this.#problems.add("error", dotted(path), text, this.#source.placeAt(offset));
  }
}
