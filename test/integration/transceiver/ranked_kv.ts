import type { BlockId } from "../../../src/ids.ts";
import { placeOf, shareOf } from "../../../src/kv/ranks.ts";
import type { KvInstance } from "../../../src/transceiver/instance.ts";

/** What token `token` of a sequence keeps in one head of one plane of one layer: another number for each. */
const vectorOf = (sequence: number, layer: number, plane: number, head: number, token: number): number =>
  ((sequence * 64 + layer) * 2 + plane) * 64 + head + token / 1024;

/** [from, to) of the model. */
interface Layers {
  readonly from: number;
  readonly to: number;
}
const EVERY_LAYER: Layers = { from: 0, to: Number.POSITIVE_INFINITY };

type Row = readonly [layer: number, plane: number, head: number, token: number, values: Float32Array];

/** Every head's vector of tokens [from, to) in every rank's pool; blocks are `[layer][k|v][head][token][headDim]` of the rank's share. */
function* rowsOf(
  instance: KvInstance,
  blocks: readonly BlockId[],
  from: number,
  to: number,
  only: Layers,
): Generator<readonly [rank: number, row: Row]> {
  const { layout } = instance;
  const sizes = instance.sizes;
  for (const [rank, transceiver] of instance.ranks.entries()) {
    const { layers, heads } = shareOf(layout, placeOf(rank, sizes));
    const count = heads.to - heads.from;
    for (let layer = Math.max(layers.from, only.from); layer < Math.min(layers.to, only.to); layer++) {
      for (const plane of [0, 1]) {
        for (let head = heads.from; head < heads.to; head++) {
          const index = ((layer - layers.from) * 2 + plane) * count + head - heads.from;
          for (let token = from; token < to; token++) {
            const block = blocks[Math.floor(token / layout.tokensPerBlock)] as BlockId;
            const inBlock = (index * layout.tokensPerBlock + (token % layout.tokensPerBlock)) * layout.headDim * 4;
            const at = block * transceiver.blockBytes + inBlock;
            yield [rank, [layer, plane, head, token, new Float32Array(transceiver.memory, at, layout.headDim)]];
          }
        }
      }
    }
  }
}

/** As if prefill had computed tokens [from, to) of a sequence, in every rank. */
export function writeKv(
  instance: KvInstance,
  sequence: number,
  blocks: readonly BlockId[],
  from: number,
  to: number,
  layers = EVERY_LAYER,
) {
  for (const [, [layer, plane, head, token, values]] of rowsOf(instance, blocks, from, to, layers)) {
    values.fill(vectorOf(sequence, layer, plane, head, token));
  }
}

/** The first vector of tokens [from, to) that is not the sequence's, in any rank; null: all are right. */
export function findWrongKv(
  instance: KvInstance,
  sequence: number,
  blocks: readonly BlockId[],
  from: number,
  to: number,
  layers = EVERY_LAYER,
): string | null {
  for (const [rank, [layer, plane, head, token, values]] of rowsOf(instance, blocks, from, to, layers)) {
    const wanted = Math.fround(vectorOf(sequence, layer, plane, head, token));
    if (values.every((value) => value === wanted)) continue;
    return `rank ${rank}: layer ${layer}, plane ${plane}, head ${head}, token ${token}: ${values[0]}, not ${wanted}`;
  }
  return null;
}
