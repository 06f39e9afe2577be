import { readFileSync } from "node:fs";
import type { GgufValue } from "../../../src/native/binding.ts";

/** Reads the metadata of a well-formed GGUF 3 file with the value types that models/tiny.gguf has, for tests without the addon. */
export function readGgufMetadata(file: string | URL): Record<string, GgufValue> {
  const bytes = readFileSync(file);
  let end = 8;
  const take = (size: number): number => {
    end += size;
    return end - size;
  };
  const u32 = (): number => bytes.readUInt32LE(take(4));
  const u64 = (): number => Number(bytes.readBigUInt64LE(take(8)));
  const text = (): string => bytes.toString("utf8", take(u64()), end);
  const read = (type: number): GgufValue => {
    if (type === 4) return u32();
    if (type === 5) return bytes.readInt32LE(take(4));
    if (type === 6) return bytes.readFloatLE(take(4));
    if (type === 7) return bytes.readUInt8(take(1)) !== 0;
    if (type === 8) return text();
    if (type !== 9) throw new Error(`GGUF type ${type} at ${end}`);
    const inner = u32();
    return Array.from({ length: u64() }, () => read(inner));
  };
  u64();
  const metadata: Record<string, GgufValue> = {};
  for (let left = u64(); left > 0; left--) {
    const key = text();
    metadata[key] = read(u32());
  }
  return metadata;
}
