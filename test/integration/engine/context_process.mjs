// A context worker's engine in a process of its own, driven over IPC by across_processes.test.ts. Runs dist/.
import { createHash } from "node:crypto";
import { KvTransceiver, requestId } from "../../../dist/index.js";
import { GREEDY } from "../../../dist/worker/engine.js";
import { ReferenceEngine } from "../../../dist/worker/reference_engine.js";

const BLOCKS = 128;
const engine = await ReferenceEngine.load(process.argv[2], { kv: process.argv[3] });
const { layers, kvHeads, headDim, dtype, tokensPerBlock } = engine.geometry;
const kv = await KvTransceiver.open({
  layout: { layers, kvHeads, headDim, dtype, tokensPerBlock, attention: "gqa" },
  pool: { memory: "host", blocks: BLOCKS },
});
engine.attach(kv.span, BLOCKS);

async function offer({ id, tokens, steps }) {
  const blocks = kv.pool.allocate(Math.ceil((tokens.length + steps) / tokensPerBlock));
  const history = Uint32Array.from(tokens);
  const sampling = {
    ...GREEDY,
    index: 0,
    history,
    promptTokens: tokens.length,
    banned: new Uint32Array(),
  };
  const first = await engine.prefill({ tokens: history, startPos: 0, blockTable: blocks.ids, sampling });
  const sending = kv.send({ requestId: requestId(id), tokens: tokens.length, blocks });
  const kvBytes = blocks.ids
    .slice(0, Math.ceil(tokens.length / tokensPerBlock))
    .map((block) => Buffer.from(kv.memory, block * kv.blockBytes, kv.blockBytes).toString("base64"));
  await new Promise((resolve, reject) =>
    process.send({ first: first.token, state: sending.state, kvBytes }, (e) => (e ? reject(e) : resolve())),
  );
  await sending.done;
  // What this process would have gone on with: the bits that the other one must find too.
  const logits = [];
  let token = first.token;
  for (let step = 0; step < steps; step++) {
    const row = await engine.logits({
      tokens: Uint32Array.of(token),
      startPos: tokens.length + step,
      blockTable: blocks.ids,
    });
    logits.push(
      createHash("sha256")
        .update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength))
        .digest("hex"),
    );
    token = row.indexOf(Math.max(...row));
  }
  blocks.release();
  process.send({ logits });
}

process.on("message", (message) => {
  if (message === "close") {
    Promise.all([engine.close(), kv.close()]).then(() => process.disconnect());
    return;
  }
  offer(message).catch((error) => process.send({ error: String(error?.stack ?? error) }));
});
process.send({ ready: true });
