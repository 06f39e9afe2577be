/** Small delays (xorshift128, Marsaglia 2003): the same seed and name give the same ones. Seed 0 is silence: nothing is random. */
export class Noise {
  readonly #silent: boolean;
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  constructor(seed: number, name: string) {
    this.#silent = seed === 0;
    let hash = seed | 0;
    for (let at = 0; at < name.length; at++) hash = Math.imul(hash ^ name.charCodeAt(at), 0x01000193);
    this.#a = hash >>> 0;
    this.#b = 0x9e3779b9 ^ seed;
    this.#c = 0x243f6a88;
    this.#d = 0xb7e15162;
    for (let turn = 0; turn < 16; turn++) this.#next();
  }

  #next(): number {
    let t = this.#a ^ (this.#a << 11);
    this.#a = this.#b;
    this.#b = this.#c;
    this.#c = this.#d;
    t ^= t >>> 8;
    this.#d = (this.#d ^ (this.#d >>> 19) ^ t) >>> 0;
    return this.#d;
  }

  /** In [0, 1). */
  unit(): number {
    return this.#silent ? 0.5 : this.#next() / 0x1_0000_0000;
  }

  /** Mostly near `typical`, one in twenty up to 20 times as long: what networks and schedulers do. */
  delay(typical: number): number {
    const unit = this.unit();
    return unit < 0.05 ? typical * (1 + this.unit() * 19) : this.unit() * typical;
  }
}
