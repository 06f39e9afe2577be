import type { Candidate } from "./chosen.ts";
import type { Place, ProblemKind, Problems } from "./problems.ts";
import { dotted, type Path, type YamlSource } from "./yaml_source.ts";

/** One map of a parsed file, for reading its values together with their places. */
export class FileSection<T extends object> {
  readonly #values: Partial<T>;
  readonly #source: YamlSource | undefined;
  readonly #path: Path;

  constructor(values: T | null | undefined, source: YamlSource | undefined, path: Path) {
    this.#values = values ?? {};
    this.#source = source;
    this.#path = path;
  }

  /** The value as written; null stays null, for keys where it says something of its own. */
  given<K extends keyof T & string>(key: K): Candidate<Exclude<T[K], undefined>> | undefined {
    const value = this.#values[key];
    if (value === undefined) return undefined;
    const place = this.place(key);
    return { value: value as Exclude<T[K], undefined>, origin: place ? `${place.file}:${place.line}` : "file" };
  }

  /** The value, or undefined when the key is absent or null, which both mean the default (S8). */
  value<K extends keyof T & string>(key: K): Candidate<NonNullable<T[K]>> | undefined {
    const given = this.given(key);
    return given === undefined || given.value === null ? undefined : (given as Candidate<NonNullable<T[K]>>);
  }

  section<K extends keyof T & string>(key: K): FileSection<NonNullable<T[K]> & object> {
    const value = this.#values[key] as (NonNullable<T[K]> & object) | null | undefined;
    return new FileSection(value, this.#source, [...this.#path, key]);
  }

  /** Keys with a value, in the order of the file. */
  get keys(): (keyof T & string)[] {
    return (Object.keys(this.#values) as (keyof T & string)[]).filter((key) => this.has(key));
  }

  has(key: keyof T & string): boolean {
    return this.#values[key] !== undefined && this.#values[key] !== null;
  }

  place(key: string): Place | undefined {
    return this.#source?.placeOfValue([...this.#path, key]);
  }

  /** `kv_cache_config.dtype` */
  name(key: string): string {
    return dotted([...this.#path, key]);
  }

  report(problems: Problems, kind: ProblemKind, key: string, text: string): void {
    problems.add(kind, this.name(key), text, this.place(key));
  }
}
