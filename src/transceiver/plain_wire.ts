/**
 * The short way between values and their msgpack bytes, for what comes with each transfer: one pass, no schema, no intermediate map
 * (docs/decisions/033-plain-frames.md). It knows only the forms that a transceiver writes; where bytes look otherwise it says so, and the
 * library and the schema decide.
 */

/** How one field is written and read. `read` gives what the field's schema would give, or undefined where the schema has to decide. */
export interface PlainField {
  write(to: WireWriter, value: never): void;
  read(from: WireReader): unknown;
}

const NIBBLES = new Uint8Array(128);
for (const [value, digit] of [..."0123456789abcdef"].entries()) NIBBLES[digit.charCodeAt(0)] = value;

/** Into one growing buffer, which is read by `take`. */
export class WireWriter {
  #buffer = Buffer.allocUnsafe(4096);
  #at = 0;

  /** The bytes since the last call, with `headroom` free bytes in front. */
  take(headroom: number): Buffer {
    const taken = Buffer.allocUnsafe(headroom + this.#at);
    this.#buffer.copy(taken, headroom, 0, this.#at);
    this.#at = 0;
    return taken;
  }

  raw(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#buffer.set(bytes, this.#at);
    this.#at += bytes.length;
  }

  map(entries: number): void {
    this.#reserve(1);
    this.#buffer[this.#at++] = 0x80 | entries;
  }

  array(items: number): void {
    this.#head(items, 0x90, 16, 0, 0xdc);
  }

  count(value: number): void {
    if (value > 0xffff_ffff) {
      this.#reserve(9);
      this.#buffer[this.#at] = 0xcf;
      this.#buffer.writeBigUInt64BE(BigInt(value), this.#at + 1);
      this.#at += 9;
    } else {
      this.#head(value, 0, 128, 0xcc, 0xcd);
    }
  }

  /** A number that may have a fraction. */
  number(value: number): void {
    if (Number.isSafeInteger(value) && value >= 0) {
      this.count(value);
      return;
    }
    this.#reserve(9);
    this.#buffer[this.#at] = 0xcb;
    this.#buffer.writeDoubleBE(value, this.#at + 1);
    this.#at += 9;
  }

  text(value: string): void {
    const bytes = Buffer.byteLength(value);
    this.#head(bytes, 0xa0, 32, 0xd9, 0xda);
    this.#reserve(bytes);
    this.#buffer.write(value, this.#at);
    this.#at += bytes;
  }

  /** The head of a byte string; its bytes follow. */
  bin(bytes: number): void {
    this.#head(bytes, 0, 0, 0xc4, 0xc5);
  }

  /** A byte string, from lower-case hex digits. */
  hex(digits: string): void {
    const bytes = digits.length / 2;
    this.bin(bytes);
    this.#reserve(bytes);
    for (let index = 0; index < digits.length; index += 2) {
      const high = NIBBLES[digits.charCodeAt(index)] ?? 0;
      this.#buffer[this.#at++] = (high << 4) | (NIBBLES[digits.charCodeAt(index + 1)] ?? 0);
    }
  }

  uint32sLe(values: readonly number[]): void {
    this.bin(4 * values.length);
    this.#reserve(4 * values.length);
    for (const value of values) this.#at = this.#buffer.writeUInt32LE(value, this.#at);
  }

  /** `value` in the shortest form: in the first byte, or in 1, 2 or 4 bytes behind one of three codes that follow each other. */
  #head(value: number, short: number, shortLimit: number, code8: number, code16: number): void {
    this.#reserve(5);
    if (value < shortLimit) {
      this.#buffer[this.#at++] = short | value;
    } else if (code8 !== 0 && value <= 0xff) {
      this.#buffer[this.#at++] = code8;
      this.#buffer[this.#at++] = value;
    } else if (value <= 0xffff) {
      this.#buffer[this.#at++] = code16;
      this.#at = this.#buffer.writeUInt16BE(value, this.#at);
    } else {
      this.#buffer[this.#at++] = code16 + 1;
      this.#at = this.#buffer.writeUInt32BE(value, this.#at);
    }
  }

  #reserve(bytes: number): void {
    if (this.#at + bytes <= this.#buffer.length) return;
    const grown = Buffer.allocUnsafe(2 * (this.#at + bytes));
    this.#buffer.copy(grown, 0, 0, this.#at);
    this.#buffer = grown;
  }
}

/** Each method answers undefined, and the position means nothing any more, where something else stands there. */
export class WireReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  get ended(): boolean {
    return this.#at === this.#bytes.length;
  }

  /** Steps over `bytes` if they stand here. */
  skip(bytes: Uint8Array): boolean {
    const from = this.#at;
    if (from + bytes.length > this.#bytes.length) return false;
    for (let index = 0; index < bytes.length; index++) if (this.#bytes[from + index] !== bytes[index]) return false;
    this.#at = from + bytes.length;
    return true;
  }

  map(): number | undefined {
    const head = this.#byte();
    return head >= 0x80 && head < 0x90 ? head & 0x0f : undefined;
  }

  array(): number | undefined {
    const head = this.#byte();
    return head >= 0x90 && head < 0xa0 ? head & 0x0f : undefined;
  }

  count(): number | undefined {
    const head = this.#byte();
    if (head < 0x80) return head;
    if (head < 0xcc || head > 0xcf) return undefined;
    const value = this.#size(head - 0xcc);
    return Number.isSafeInteger(value) ? value : undefined;
  }

  number(): number | undefined {
    if (this.#bytes[this.#at] !== 0xcb) return this.count();
    if (this.#at + 9 > this.#bytes.length) return undefined;
    const value = this.#bytes.readDoubleBE(this.#at + 1);
    this.#at += 9;
    return value;
  }

  text(): string | undefined {
    const head = this.#byte();
    const length = head >= 0xa0 && head < 0xc0 ? head & 0x1f : this.#size(head - 0xd9);
    const bytes = this.#take(length);
    if (bytes === undefined) return undefined;
    // What is no plain ASCII may be no valid UTF-8, about which the library has its own opinion.
    for (let index = 0; index < bytes.length; index++) if ((bytes[index] ?? 0) > 0x7f) return undefined;
    return bytes.toString("latin1");
  }

  /** A byte string of `bytes` bytes as lower-case hex digits. */
  hex(bytes: number): string | undefined {
    const from = this.#at + 2;
    if (this.#bytes[this.#at] !== 0xc4 || this.#bytes[this.#at + 1] !== bytes) return undefined;
    if (from + bytes > this.#bytes.length) return undefined;
    this.#at = from + bytes;
    return this.#bytes.toString("hex", from, this.#at);
  }

  bin(): Buffer | undefined {
    const head = this.#byte();
    return head < 0xc4 || head > 0xc6 ? undefined : this.#take(this.#size(head - 0xc4));
  }

  nil(): null | undefined {
    return this.#byte() === 0xc0 ? null : undefined;
  }

  get nilNext(): boolean {
    return this.#bytes[this.#at] === 0xc0;
  }

  /** -1 behind the end. */
  #byte(): number {
    return this.#bytes[this.#at++] ?? -1;
  }

  /** A big-endian number of 2^`power` bytes; NaN where there is none. */
  #size(power: number): number {
    const from = this.#at;
    const bytes = 1 << power;
    if (power < 0 || power > 3 || from + bytes > this.#bytes.length) return Number.NaN;
    this.#at += bytes;
    if (power === 0) return this.#bytes[from] ?? Number.NaN;
    if (power === 1) return this.#bytes.readUInt16BE(from);
    const high = this.#bytes.readUInt32BE(from);
    return power === 2 ? high : high * 0x1_0000_0000 + this.#bytes.readUInt32BE(from + 4);
  }

  #take(length: number): Buffer | undefined {
    const from = this.#at;
    // Also for NaN.
    if (!(from + length <= this.#bytes.length)) return undefined;
    this.#at += length;
    return this.#bytes.subarray(from, from + length);
  }
}

export const plainCount: PlainField = {
  write: (to, value: number) => to.count(value),
  read: (from) => from.count(),
};

export const plainNumber = (limit: number): PlainField => ({
  write: (to, value: number) => to.number(value),
  read: (from) => {
    const value = from.number();
    return value !== undefined && value >= 0 && value <= limit ? value : undefined;
  },
});

/** @param repeats most values are the one before: it is compared before it is read */
export const plainHex = (bytes: number, repeats: boolean): PlainField => {
  let last: { readonly bytes: Buffer; readonly digits: string } | undefined;
  return {
    write: (to, digits: string) => to.hex(digits),
    read: (from) => {
      if (last !== undefined && from.skip(last.bytes)) return last.digits;
      const digits = from.hex(bytes);
      if (repeats && digits !== undefined) {
        last = { bytes: Buffer.concat([Buffer.of(0xc4, bytes), Buffer.from(digits, "hex")]), digits };
      }
      return digits;
    },
  };
};

export const plainBytes: PlainField = {
  write: (to, bytes: Uint8Array) => {
    to.bin(bytes.length);
    to.raw(bytes);
  },
  read: (from) => {
    const bytes = from.bin();
    return bytes === undefined ? undefined : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  },
};

/** uint32s, little-endian, in one byte string. */
export const plainUint32s: PlainField = {
  write: (to, values: readonly number[]) => to.uint32sLe(values),
  read: (from) => {
    const bytes = from.bin();
    if (bytes === undefined || bytes.length % 4 !== 0) return undefined;
    const values = new Array<number>(bytes.length / 4);
    for (let index = 0; index < values.length; index++) values[index] = bytes.readUInt32LE(4 * index);
    return values;
  },
};

export const plainText = (limit: number): PlainField => {
  // Names and addresses of one peer come again and again: a string that is the same bytes is the same string.
  let last: { readonly bytes: Buffer; readonly text: string } | undefined;
  return {
    write: (to, value: string) => to.text(value),
    read: (from) => {
      if (last !== undefined && from.skip(last.bytes)) return last.text;
      const text = from.text();
      if (text === undefined || text.length > limit) return undefined;
      last = { bytes: msgpackText(text), text };
      return text;
    },
  };
};

/** One of `words`; what is none of them is the schema's business. */
export const plainWord = (words: readonly string[]): PlainField => {
  const all = words.map((word) => ({ word, bytes: msgpackText(word) }));
  return {
    write: (to, value: string) => to.text(value),
    read: (from) => all.find(({ bytes }) => from.skip(bytes))?.word,
  };
};

export const plainNullable = (field: PlainField): PlainField => ({
  write: (to, value) => {
    if (value === null) to.raw(Uint8Array.of(0xc0));
    else field.write(to, value);
  },
  read: (from) => (from.nilNext ? from.nil() : field.read(from)),
});

export const plainArray = (field: PlainField, limit: number): PlainField => ({
  write: (to, values: readonly never[]) => {
    to.array(values.length);
    for (const value of values) field.write(to, value);
  },
  read: (from) => {
    const count = from.array();
    if (count === undefined || count > limit) return undefined;
    const values: unknown[] = [];
    for (let index = 0; index < count; index++) {
      const value = field.read(from);
      if (value === undefined) return undefined;
      values.push(value);
    }
    return values;
  },
});

const texts = new WireWriter();

function msgpackText(text: string): Buffer {
  texts.text(text);
  return texts.take(0);
}

export interface PlainEntry {
  readonly name: string;
  readonly field: PlainField;
  readonly optional: boolean;
}

/**
 * A map whose entries stand in the order of `entries`.
 * @param type of a frame: its first entry, always the same
 */
export function plainMap(entries: readonly PlainEntry[], type?: string): PlainField {
  const all = entries.map(({ name, field, optional }) => ({ name, field, optional, key: msgpackText(name) }));
  const first = type === undefined ? Buffer.alloc(0) : Buffer.concat([msgpackText("type"), msgpackText(type)]);
  const constants = type === undefined ? 0 : 1;
  return {
    write: (to, value: Readonly<Record<string, never>>) => {
      let present = constants;
      for (const { name } of all) if (value[name] !== undefined) present++;
      to.map(present);
      to.raw(first);
      for (const { name, field, key } of all) {
        const one = value[name];
        if (one === undefined) continue;
        to.raw(key);
        field.write(to, one);
      }
    },
    read: (from) => {
      const present = from.map();
      if (present === undefined || !from.skip(first)) return undefined;
      const value: Record<string, unknown> = type === undefined ? {} : { type };
      let seen = constants;
      for (const { name, field, optional, key } of all) {
        if (!from.skip(key)) {
          if (optional) continue;
          return undefined;
        }
        const one = field.read(from);
        if (one === undefined) return undefined;
        value[name] = one;
        seen++;
      }
      // An entry more is one of a newer version, which the schema knows to leave out.
      return seen === present ? value : undefined;
    },
  };
}
