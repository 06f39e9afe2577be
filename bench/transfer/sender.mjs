// The sending side of the transceiver cases: { offer: { count, tokens } } in, the states out; { cpu } asks for the seconds of CPU that it
// has used; { tokenize } keeps its JS thread busy.
import { join } from "node:path";
import { KvTransceiver } from "../../dist/index.js";
import { loadNative } from "../../dist/native/loader.js";
import { Tokenizer } from "../../dist/worker/text/index.js";
import { root } from "../../scripts/prepare.mjs";
import { echoUntilParentEnds, offering } from "./offering.mjs";

const [layout, blocks, socketDir, maxConcurrentSends] = JSON.parse(process.argv[2]);
const pool = { memory: "host", blocks };
const kv = await KvTransceiver.open({ layout, pool, socketDir, maxConcurrentSends });
let tokenizer;
let busy = false;

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

const answerOffer = offering(kv);

process.on("message", async (message) => {
  if (message.offer !== undefined) answerOffer(message.offer);
  if (message.cpu !== undefined) {
    const { user, system } = process.cpuUsage();
    process.send({ cpuSeconds: (user + system) / 1e6 });
  }
  if (message.tokenize !== undefined) {
    busy = message.tokenize;
    if (busy) await tokenizeUntilTold();
  }
});

await echoUntilParentEnds(socketDir);
