/**
 * What src/kv/placement.ts gives for one group whose blocks lie one after another, `[layer][plane][head][token]` in each: for planes that are
 * opened without a transceiver.
 */
export function packedLayout({ layers, planes, heads, tokensPerBlock, headBytes }) {
  const rowBytes = tokensPerBlock * headBytes;
  const layerBytes = planes * heads * rowBytes;
  const blockBytes = Math.ceil((layers * layerBytes) / 64) * 64;
  const group = {
    planes,
    heads,
    firstHead: 0,
    elementBytes: headBytes,
    perBlock: false,
    replicated: false,
    window: 0,
    blockStride: blockBytes,
    planeStride: heads * rowBytes,
    headStride: rowBytes,
    tokenStride: headBytes,
    layers: Uint32Array.from({ length: layers }, (_, layer) => layer),
    bases: Float64Array.from({ length: layers }, (_, layer) => layer * layerBytes),
  };
  return { tokensPerBlock, blockBytes, groups: [group] };
}
