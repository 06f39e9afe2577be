// The sending side of calls.mjs: { offer: { count, tokens } } in, the states out.
import { KvTransceiver } from "../../dist/index.js";
import { echoUntilParentEnds, offering } from "../transfer/offering.mjs";

const [layout, blocks, socketDir, memory] = JSON.parse(process.argv[2]);
const kv = await KvTransceiver.open({ layout, pool: { memory, blocks }, socketDir });
const answer = offering(kv);
process.on("message", ({ offer }) => answer(offer));
await echoUntilParentEnds(socketDir);
