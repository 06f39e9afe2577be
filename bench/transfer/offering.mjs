// What the sending side of a bench through KvTransceiver does besides its own: offers by the dozen, and an echo.
import { createServer } from "node:net";
import { join } from "node:path";
import { requestId } from "../../dist/index.js";

/** Blocks of a transfer come back when its DONE has been read, which a new offer may overtake. */
async function allocate(kv, count) {
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

/** @returns what answers { count, tokens } with the states of so many offers, in the order in which it was asked */
export function offering(kv) {
  let request = 0;
  let before = Promise.resolve();
  const offer = async ({ count, tokens }) => {
    const states = [];
    for (let index = 0; index < count; index++) {
      const hold = await allocate(kv, Math.ceil(tokens / kv.layout.tokensPerBlock));
      const sending = kv.send({ requestId: requestId(++request), tokens, blocks: hold });
      hold.release();
      // The receiver's own failure is what the bench reports.
      sending.done.catch(() => {});
      states.push(sending.state);
    }
    process.send({ states });
  };
  return (asked) => {
    before = before.then(() => offer(asked));
  };
}

/** What two JS threads of this host need at least to tell each other something: the yardstick of a call's latency. Ends with its parent. */
export async function echoUntilParentEnds(socketDir) {
  const echo = createServer((socket) => socket.on("data", (bytes) => socket.write(bytes)));
  await new Promise((resolve) => echo.listen(join(socketDir, "echo.sock"), resolve));
  process.on("disconnect", () => process.exit(0));
  process.send({ ready: true });
}
