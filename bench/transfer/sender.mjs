// The sending side of the transceiver cases: { offer: { count, tokens } } in, the states out; { cpu } asks for the seconds of CPU that it
// has used; { tokenize } keeps its JS thread busy.
import { createServer } from "node:net";
import { join } from "node:path";
import { KvTransceiver, requestId } from "../../dist/index.js";
import { loadNative } from "../../dist/native/loader.js";
import { Tokenizer } from "../../dist/worker/text/index.js";
import { root } from "../../scripts/prepare.mjs";

const [layout, blocks, socketDir, maxConcurrentSends] = JSON.parse(process.argv[2]);
const pool = { memory: "host", blocks };
const kv = await KvTransceiver.open({ layout, pool, socketDir, maxConcurrentSends });
let tokenizer;
let busy = false;
let request = 0;

/** Blocks of a transfer come back when its DONE has been read, which a new offer may overtake. */
async function allocate(blocks) {
  while (kv.pool.free < blocks) {
    await new Promise((resolve) => {
      const remove = kv.pool.onFreed(() => {
        remove();
        resolve();
      });
    });
  }
  return kv.pool.allocate(blocks);
}

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

/** Offers are answered in the order in which they were asked for. */
let before = Promise.resolve();

process.on("message", async (message) => {
  if (message.offer !== undefined) {
    before = before.then(() => answerOffer(message.offer));
  }
  if (message.cpu !== undefined) {
    const { user, system } = process.cpuUsage();
    process.send({ cpuSeconds: (user + system) / 1e6 });
  }
  if (message.tokenize !== undefined) {
    busy = message.tokenize;
    if (busy) await tokenizeUntilTold();
  }
});

async function answerOffer({ count, tokens }) {
  const states = [];
  for (let index = 0; index < count; index++) {
    const hold = await allocate(Math.ceil(tokens / layout.tokensPerBlock));
    const sending = kv.send({ requestId: requestId(++request), tokens, blocks: hold });
    hold.release();
    // The receiver's own failure is what the bench reports.
    sending.done.catch(() => {});
    states.push(sending.state);
  }
  process.send({ states });
}

// What two JS threads of this host need at least to tell each other something: the yardstick of a call's latency.
const echo = createServer((socket) => socket.on("data", (bytes) => socket.write(bytes)));
await new Promise((resolve) => echo.listen(join(socketDir, "echo.sock"), resolve));

process.on("disconnect", () => process.exit(0));
process.send({ ready: true });
