import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { GREEDY } from "../../dist/worker/engine.js";
import { packedLayout } from "../../test/integration/dataplane/packed_layout.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const require = createRequire(import.meta.url);
const native = require(require("node-gyp-build").resolve(root));

const greedy = {
  ...GREEDY,
  index: 0,
  history: new Uint32Array(),
  promptTokens: 0,
  banned: new Uint32Array(),
};

/** One engine over a pool of the data plane, and one sequence of up to `tokens` tokens in it. */
export async function openEngine(file, { threads, tokens }) {
  const engine = await native.loadModel(file, { threads, weights: "auto", kv: "auto", tokensPerBlock: 32 });
  const { layers, kvHeads, headDim, kvDtype, tokensPerBlock } = engine.geometry;
  const blocks = Math.ceil(tokens / tokensPerBlock);
  const headBytes = headDim * (kvDtype === "f32" ? 4 : 2);
  const layout = packedLayout({ layers, planes: 2, heads: kvHeads, tokensPerBlock, headBytes });
  const plane = await native.openDataPlane({ layout, blocks, epoch: "00000000000000aa", check: false }, () => {});
  engine.attachPools([{ span: plane.span, places: layout.groups[0] }], blocks);
  const blockTable = Uint32Array.from({ length: blocks }, (_, index) => index);
  let call = 0;
  return {
    prefill: async (prompt) => (await engine.prefill(++call, prompt, 0, blockTable, greedy, null, 1)).token,
    decode: async (token, pos) =>
      (await engine.decode(++call, [{ token, pos, blockTable, sampling: greedy }]))[0].token,
    close: async () => {
      await engine.close();
      await plane.close();
    },
  };
}
