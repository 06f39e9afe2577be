// The sending side of the transceiver cases: { offer: { count, tokens } } in, the states out; { tokenize } keeps its JS thread busy.
import { join } from "node:path";
import { KvTransceiver, requestId } from "../../dist/index.js";
import { loadNative } from "../../dist/native/loader.js";
import { Tokenizer } from "../../dist/worker/text/index.js";
import { root } from "../../scripts/prepare.mjs";

const [layout, blocks, socketDir] = JSON.parse(process.argv[2]);
const kv = await KvTransceiver.open({ layout, pool: { memory: "host", blocks }, socketDir });
let tokenizer;
let busy = false;
let request = 0;

/** Texts of about 10k tokens, one after the other, on the tokenizer's own thread as a worker does it. */
async function tokenizeUntilTold() {
  const engine = await loadNative().loadModel(join(root, "models/tiny.gguf"), {
    threads: 1,
    weights: "auto",
    kv: "auto",
    tokensPerBlock: 32,
  });
  tokenizer ??= Tokenizer.fromMetadata(engine.metadata);
  await engine.close();
  const text = "The quick brown fox jumps over the lazy dog, again and again. ".repeat(650);
  process.send({ tokenizing: (await tokenizer.encodeAsync(text, { specials: false })).length });
  while (busy) await tokenizer.encodeAsync(text, { specials: false });
}

process.on("message", async (message) => {
  if (message.offer !== undefined) {
    const states = [];
    for (let index = 0; index < message.offer.count; index++) {
      const hold = kv.pool.allocate(Math.ceil(message.offer.tokens / layout.tokensPerBlock));
      const sending = kv.send({ requestId: requestId(++request), tokens: message.offer.tokens, blocks: hold });
      hold.release();
      // The receiver's own failure is what the bench reports.
      sending.done.catch(() => {});
      states.push(sending.state);
    }
    process.send({ states });
  }
  if (message.tokenize !== undefined) {
    busy = message.tokenize;
    if (busy) await tokenizeUntilTold();
  }
});
process.on("disconnect", () => process.exit(0));
process.send({ ready: true });
