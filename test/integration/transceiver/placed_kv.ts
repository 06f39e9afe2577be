import type { BlockId } from "../../../src/ids.ts";
import { nativeLayoutOf } from "../../../src/kv/placement.ts";
import { placeOf } from "../../../src/kv/ranks.ts";
import { groupsOf } from "../../../src/layout.ts";
import type { NativeGroup } from "../../../src/native/plane_binding.ts";
import type { OpenOptions } from "../../../src/transceiver/api.ts";
import type { KvInstance } from "../../../src/transceiver/instance.ts";

/** An instance and where its ranks' KV lies. */
export interface PlacedKv {
  readonly kv: Pick<KvInstance, "layout" | "sizes" | "ranks">;
  readonly pool: OpenOptions["pool"];
}

/** One element of a group: what it is of the model, and its bytes in a rank's pool. */
interface Element {
  readonly rank: number;
  readonly name: string;
  readonly key: readonly [group: number, layer: number, plane: number, head: number, at: number];
  readonly bytes: Uint8Array;
}

function* elementsOfGroup(
  group: NativeGroup,
  tokensPerBlock: number,
  blocks: readonly BlockId[],
  [from, to]: readonly [number, number],
): Generator<readonly [layer: number, plane: number, head: number, at: number, offset: number]> {
  for (const [index, layer] of group.layers.entries()) {
    for (let plane = 0; plane < group.planes; plane++) {
      for (let head = 0; head < group.heads; head++) {
        const row = (group.bases[index] ?? 0) + plane * group.planeStride + head * group.headStride;
        for (let token = from; token < to; token++) {
          const block = Math.floor(token / tokensPerBlock);
          const first = Math.max(from, block * tokensPerBlock);
          if (group.perBlock && token !== first) continue;
          const inBlock = group.perBlock ? 0 : (token % tokensPerBlock) * group.tokenStride;
          const offset = row + (blocks[block] as BlockId) * group.blockStride + inBlock;
          yield [layer, plane, head + group.firstHead, group.perBlock ? block : token, offset];
        }
      }
    }
  }
}

/** Every element that the ranks hold of tokens [from, to), those that windows leave of a sequence of `sequence` tokens. */
function* elementsOf({ kv, pool }: PlacedKv, blocks: readonly BlockId[], from: number, to: number, sequence: number) {
  const { layout, sizes, ranks } = kv;
  const names = groupsOf(layout).map(({ name }) => name);
  for (const [rank, { memory }] of ranks.entries()) {
    const { groups, tokensPerBlock } = nativeLayoutOf(layout, placeOf(rank, sizes), pool);
    for (const [number, group] of groups.entries()) {
      const live = group.window === 0 ? 0 : Math.max(0, sequence - group.window);
      const tokens = [Math.max(from, live), to] as const;
      for (const [layer, plane, head, at, offset] of elementsOfGroup(group, tokensPerBlock, blocks, tokens)) {
        const bytes = new Uint8Array(memory, offset, group.elementBytes);
        yield { rank, name: names[number] ?? "", key: [number, layer, plane, head, at], bytes } satisfies Element;
      }
    }
  }
}

/** Another byte for each element, and for each place in it. */
function byteOf(sequence: number, key: Element["key"], index: number): number {
  let hash = sequence + 1;
  for (const part of key) hash = Math.imul(hash ^ part, 0x9e3779b1) ^ (hash >>> 15);
  return (hash ^ (hash >>> 13) ^ Math.imul(index, 167)) & 0xff;
}

/** As if prefill had computed tokens [from, to) of a sequence, in every rank. */
export function writePlaced(
  where: PlacedKv,
  number: number,
  blocks: readonly BlockId[],
  from: number,
  to: number,
): void {
  for (const { key, bytes } of elementsOf(where, blocks, from, to, 0)) {
    for (let index = 0; index < bytes.length; index++) bytes[index] = byteOf(number, key, index);
  }
}

/** The first element of tokens [from, to) that is not the sequence's, in any rank; null: all are right. */
export function findWrongPlaced(
  where: PlacedKv,
  number: number,
  blocks: readonly BlockId[],
  [from, to]: readonly [number, number],
  sequence: number,
): string | null {
  for (const { rank, name, key, bytes } of elementsOf(where, blocks, from, to, sequence)) {
    for (const [index, byte] of bytes.entries()) {
      if (byte === byteOf(number, key, index)) continue;
      const [, layer, plane, head, at] = key;
      return `rank ${rank}: group ${name}, layer ${layer}, plane ${plane}, head ${head}, token or block ${at}, byte ${index}`;
    }
  }
  return null;
}
