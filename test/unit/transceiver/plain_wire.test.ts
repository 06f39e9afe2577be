import { encode } from "@msgpack/msgpack";
import { describe, expect, it } from "vitest";
import {
  plainArray,
  plainBytes,
  plainCount,
  plainHex,
  plainMap,
  plainNullable,
  plainNumber,
  plainText,
  plainUint32s,
  plainWord,
  WireReader,
  WireWriter,
} from "../../../src/transceiver/plain_wire.ts";

const field = (name: string, plain: Parameters<typeof plainMap>[0][number]["field"], optional = false) => ({
  name,
  field: plain,
  optional,
});
const map = plainMap(
  [
    field("id", plainHex(8, true)),
    field("count", plainCount),
    field("ms", plainNumber(1e10)),
    field("text", plainText(300)),
    field("word", plainWord(["ok", "failed"])),
    field("maybe", plainNullable(plainCount)),
    field("names", plainArray(plainText(64), 15)),
    field("blocks", plainUint32s),
    field("bytes", plainBytes, true),
  ],
  "SAMPLE",
);
const sample = {
  type: "SAMPLE",
  id: "00ff7f80deadbeef",
  count: 0,
  ms: 0.5,
  text: "",
  word: "failed",
  maybe: null as number | null,
  names: ["a", "b".repeat(40)],
  blocks: [0, 1, 0xffff_ffff],
};

function bytesOf(value: typeof sample & { bytes?: Uint8Array }): Uint8Array {
  const writer = new WireWriter();
  map.write(writer, value as never);
  return Uint8Array.from(writer.take(0));
}

function read(bytes: Uint8Array): unknown {
  const reader = new WireReader(bytes);
  const value = map.read(reader);
  return reader.ended ? value : undefined;
}

const raw = ({ blocks, id, ...rest }: typeof sample & { bytes?: Uint8Array }) => ({
  type: rest.type,
  id: Uint8Array.from(Buffer.from(id, "hex")),
  count: rest.count,
  ms: rest.ms,
  text: rest.text,
  word: rest.word,
  maybe: rest.maybe,
  names: rest.names,
  blocks: new Uint8Array(Uint32Array.from(blocks).buffer),
  ...(rest.bytes === undefined ? {} : { bytes: rest.bytes }),
});

describe("the short way between values and msgpack", () => {
  const counts = [0, 127, 128, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER];
  const lengths = [0, 31, 32, 255, 256, 300];
  it.each(counts)("writes and reads %d as the library does", (count) => {
    const value = { ...sample, count, ms: count < 1e10 ? count : 1.25, maybe: count };
    expect(bytesOf(value)).toEqual(encode(raw(value)));
    expect(read(bytesOf(value))).toEqual(value);
  });

  it.each(lengths)("writes and reads a text of %d letters and as many bytes as the library does", (length) => {
    const value = { ...sample, text: "x".repeat(length), bytes: new Uint8Array(length).fill(7) };
    expect(bytesOf(value)).toEqual(encode(raw(value)));
    expect(read(bytesOf(value))).toEqual(value);
  });

  it("carries a table that is larger than its buffer", () => {
    const value = { ...sample, blocks: Array.from({ length: 100_000 }, (_, index) => index * 40_000) };
    expect(bytesOf(value)).toEqual(encode(raw(value)));
    expect(read(bytesOf(value))).toEqual(value);
  });

  it("leaves to the library whatever is cut, longer, of another type, newer or no plain text", () => {
    const whole = bytesOf(sample);
    expect(read(whole)).toEqual(sample);
    for (let length = 0; length < whole.length; length++) expect(read(whole.subarray(0, length))).toBeUndefined();
    expect(read(Uint8Array.of(...whole, 0))).toBeUndefined();
    expect(read(encode({ ...raw(sample), type: "OTHER!" }))).toBeUndefined();
    expect(read(encode({ ...raw(sample), newer: 1 }))).toBeUndefined();
    expect(read(encode({ ...raw(sample), count: -1 }))).toBeUndefined();
    expect(read(encode({ ...raw(sample), ms: Number.NaN }))).toBeUndefined();
    expect(read(encode({ ...raw(sample), word: "later" }))).toBeUndefined();
    expect(read(encode({ ...raw(sample), text: "ä" }))).toBeUndefined();
    expect(read(encode({ ...raw(sample), id: new Uint8Array(7) }))).toBeUndefined();
    const { count: _count, ...without } = raw(sample);
    expect(read(encode(without))).toBeUndefined();
  });
});
