// The sending side of calls.mjs: { offer: { count, tokens } } in, the states out.
import { createServer } from "node:net";
import { join } from "node:path";
import { KvTransceiver, requestId } from "../../dist/index.js";

const [layout, blocks, socketDir, memory] = JSON.parse(process.argv[2]);
const kv = await KvTransceiver.open({ layout, pool: { memory, blocks }, socketDir });
let request = 0;

/** Blocks of a transfer come back when its DONE has been read, which a new offer may overtake. */
async function allocate(count) {
  while (kv.pool.free < count) {
    await new Promise((resolve) => {
      const remove = kv.pool.onFreed(() => {
        remove();
        resolve();
      });
    });
  }
  return kv.pool.allocate(count);
}

let before = Promise.resolve();
process.on("message", ({ offer: { count, tokens } }) => {
  before = before.then(async () => {
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
  });
});

// What two JS threads of this host need at least to tell each other something: the yardstick of a call's latency.
const echo = createServer((socket) => socket.on("data", (bytes) => socket.write(bytes)));
await new Promise((resolve) => echo.listen(join(socketDir, "echo.sock"), resolve));
process.on("disconnect", () => process.exit(0));
process.send({ ready: true });
