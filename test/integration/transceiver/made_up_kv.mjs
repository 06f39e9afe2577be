// KV of made-up sequences, in the pools of ranks of any layout, wherever it lies there: every element has bytes of its own.

/** What no sequence has left in any place. */
const UNTOUCHED = 0xee;

/** @typedef {{ readonly layers: ArrayLike<number>, readonly bases: ArrayLike<number>, readonly planes: number, readonly heads: number, readonly firstHead: number, readonly elementBytes: number, readonly perBlock: boolean, readonly window: number, readonly blockStride: number, readonly planeStride: number, readonly headStride: number, readonly tokenStride: number }} Group */
/**
 * An instance, or whatever has ranks.
 * @typedef {{ readonly layout: { readonly tokensPerBlock: number }, readonly ranks: readonly { readonly memory: ArrayBuffer, readonly groups: readonly Group[] }[] }} Pools
 */
/** @typedef {{ readonly from: number, readonly to: number }} Layers of the model, [from, to) */
/** @typedef {readonly [from: number, to: number]} Tokens */
/** @type {Layers} */
const EVERY_LAYER = { from: 0, to: Number.POSITIVE_INFINITY };

/**
 * Every element that the ranks hold of some tokens, or of their blocks where a group has one element a block.
 * @param {Pools} pools
 * @param {readonly number[]} blocks of all tokens of the sequence
 * @param {Tokens} tokens
 * @param {Layers} only
 */
function* elementsOf({ layout, ranks }, blocks, [from, to], only) {
  const { tokensPerBlock } = layout;
  for (const [rank, { memory, groups }] of ranks.entries()) {
    for (const [number, group] of groups.entries()) {
      for (const [index, layer] of Array.from(group.layers).entries()) {
        if (layer < only.from || layer >= only.to) continue;
        for (let row = 0; row < group.planes * group.heads; row++) {
          const [plane, head] = [Math.floor(row / group.heads), row % group.heads];
          const place = (group.bases[index] ?? 0) + plane * group.planeStride + head * group.headStride;
          for (let token = from; token < to; token++) {
            const block = Math.floor(token / tokensPerBlock);
            if (group.perBlock && token !== Math.max(from, block * tokensPerBlock)) continue;
            const inBlock = group.perBlock ? 0 : (token % tokensPerBlock) * group.tokenStride;
            const bytes = new Uint8Array(
              memory,
              place + (blocks[block] ?? 0) * group.blockStride + inBlock,
              group.elementBytes,
            );
            const key = [number, layer, plane, head + group.firstHead, group.perBlock ? block : token];
            const last = group.perBlock ? Math.min(to, (block + 1) * tokensPerBlock) - 1 : token;
            yield { rank, group, token, last, key, bytes };
          }
        }
      }
    }
  }
}

/** Another byte for each element, and for each place in it. */
function byteOf(sequence, key, index) {
  let hash = sequence + 1;
  for (const part of key) hash = Math.imul(hash ^ part, 0x9e3779b1) ^ (hash >>> 15);
  return (hash ^ (hash >>> 13) ^ Math.imul(index, 167)) & 0xff;
}

const isWhole = (sequence, key, bytes) => bytes.every((byte, index) => byte === byteOf(sequence, key, index));

const nameOf = (rank, [group, layer, plane, head, at]) =>
  `rank ${rank}: group ${group}, layer ${layer}, plane ${plane}, head ${head}, token or block ${at}`;

/**
 * As if prefill had computed tokens [from, to) of a sequence, in every rank.
 * @param {Pools} pools
 * @param {number} sequence
 * @param {readonly number[]} blocks
 * @param {number} from
 * @param {number} to
 */
export function writeKv(pools, sequence, blocks, from, to, layers = EVERY_LAYER) {
  for (const { key, bytes } of elementsOf(pools, blocks, [from, to], layers)) {
    for (let index = 0; index < bytes.length; index++) bytes[index] = byteOf(sequence, key, index);
  }
}

/**
 * As if nothing had ever been in these blocks.
 * @param {Pools} pools
 * @param {readonly number[]} blocks
 */
export function wipeKv(pools, blocks) {
  const tokens = blocks.length * pools.layout.tokensPerBlock;
  for (const { bytes } of elementsOf(pools, blocks, [0, tokens], EVERY_LAYER)) bytes.fill(UNTOUCHED);
}

/**
 * The first element of tokens [from, to), in any rank, that is not the sequence's, but for those that windows leave behind.
 * @param {Pools} pools
 * @param {number} sequence
 * @param {readonly number[]} blocks
 * @param {number} from
 * @param {number} to
 * @param {number} tokens of the whole sequence
 * @returns {string | null} null: all are right
 */
export function findWrongKv(pools, sequence, blocks, from, to, layers = EVERY_LAYER, tokens = to) {
  for (const { rank, group, last, key, bytes } of elementsOf(pools, blocks, [from, to], layers)) {
    if (isBehind(group, last, tokens) || isWhole(sequence, key, bytes)) continue;
    return nameOf(rank, key);
  }
  return null;
}

/** By its last token: one of a whole block is moved with any of them. */
const isBehind = ({ window }, last, tokens) => window > 0 && last < tokens - window;

/**
 * The first element, in any rank, that is not as one move of tokens [skip, tokens) leaves blocks that were wiped: what was moved is the sequence's, and
 * so is what was here before it; all else is as it was, tokens behind a window and behind the last one too.
 * @param {Pools} pools
 * @param {number} sequence
 * @param {readonly number[]} blocks
 * @param {{ readonly from: number, readonly skip: number, readonly tokens: number }} moved from: what is before it is not looked at
 * @returns {string | null}
 */
export function findWrongMove(pools, sequence, blocks, { from, skip, tokens }) {
  const end = blocks.length * pools.layout.tokensPerBlock;
  for (const { rank, group, token, last, key, bytes } of elementsOf(pools, blocks, [from, end], EVERY_LAYER)) {
    const arrives = token < tokens && (token < skip || !isBehind(group, last, tokens));
    if (arrives ? isWhole(sequence, key, bytes) : bytes.every((byte) => byte === UNTOUCHED)) continue;
    return `${nameOf(rank, key)}, which ${arrives ? "is not the sequence's" : "was touched"}`;
  }
  return null;
}
