// Instances of any layout, placement and number of ranks in a process of their own, driven over IPC by placed_peer.ts. Runs dist/, as a user
// of the package would.
import { KvInstance, KvTransceiver, requestId } from "../../../dist/index.js";
import { ForeignMemory } from "./foreign_memory.mjs";
import { serveCommands } from "./ipc_commands.mjs";
import { findWrongMove, wipeKv, writeKv } from "./made_up_kv.mjs";

/** Sequences that take blocks which others gave back. */
const SUCCESSOR = 1_000;
const instances = new Map();
const memories = new Map();
const sends = new Map();
const receives = new Map();

async function memfdsOf({ memory, bytes, files = 1 }) {
  const opened = memories.get(memory) ?? (await ForeignMemory.open(bytes, files));
  memories.set(memory, opened);
  return opened.fds;
}

/** One rank, whose pool is memory of another process. */
async function openAdopted(options, { regions, ...files }) {
  const fds = await memfdsOf(files);
  const adopt = regions.map(({ file, offset, bytes }) => ({ fd: fds[file], offset, bytes }));
  const kv = await KvTransceiver.open({ ...options, pool: { ...options.pool, adopt } });
  return { kv, ranks: [kv], layout: kv.layout };
}

async function openSpread({ sizes, ...options }) {
  const kv = await KvInstance.open({ ...options, ...sizes });
  return { kv, ranks: kv.ranks, layout: kv.layout };
}

/** The blocks of a sequence: some that are free, or those that an engine says which gives out its ids itself. */
function take({ kv, layout }, tokens, ids) {
  const count = Math.ceil(tokens / layout.tokensPerBlock);
  return ids === undefined ? kv.pool.allocate(count) : kv.pool.share(ids.slice(0, count));
}

/** Blocks of the last `keeps` tokens, and how many are before them. */
function live({ layout }, blocks, tokens, keeps) {
  const first = keeps === null ? 0 : Math.floor(Math.max(0, tokens - keeps) / layout.tokensPerBlock);
  return { first, hold: blocks.share(first) };
}

const commands = {
  /** `adopted`: see AdoptedPool in placed_peer.ts. `ownsIds`: the engine gives out the ids, so that the pool has none to give. */
  async open({ at, options, adopted, ownsIds }) {
    const opened = await (adopted === undefined ? openSpread(options) : openAdopted(options, adopted));
    const all = ownsIds ? opened.kv.pool.allocate(opened.kv.pool.total) : null;
    instances.set(at, { ...opened, all });
  },
  /** Tokens [0, ready) are computed. Blocks that no window reaches are given back, and taken by another sequence at once. */
  send({ at, number, tokens, ready, keeps, ids }) {
    const pools = instances.get(at);
    const blocks = take(pools, tokens, ids);
    writeKv(pools, number, blocks.ids, 0, ready);
    const { first, hold } = live(pools, blocks, tokens, keeps);
    const sending = pools.kv.send({ requestId: requestId(number), tokens, blocks: hold, ready });
    let successor = null;
    if (ready === tokens && first > 0) {
      const behind = blocks.ids.slice(0, first);
      blocks.release();
      successor = pools.all === null ? pools.kv.pool.allocate(first) : pools.kv.pool.share(behind);
      writeKv(pools, number + SUCCESSOR, successor.ids, 0, first * pools.layout.tokensPerBlock);
    }
    sends.set(number, { pools, sending, blocks, hold, successor, ready });
    return { state: sending.state };
  },
  ready({ number, tokens }) {
    const send = sends.get(number);
    writeKv(send.pools, number, send.blocks.ids, send.ready, tokens);
    send.ready = tokens;
    send.sending.ready(tokens);
  },
  async sent({ number }) {
    const { sending, blocks, hold, successor } = sends.get(number);
    sends.delete(number);
    for (const held of [blocks, hold, successor]) held?.release();
    return { path: (await sending.done).path };
  },
  /** Of which the first `skip` tokens are here already. */
  receive({ at, number, state, tokens, skip, keeps, ids }) {
    const pools = instances.get(at);
    const blocks = take(pools, tokens, ids);
    wipeKv(pools, blocks.ids);
    writeKv(pools, number, blocks.ids, 0, skip);
    const { first, hold } = live(pools, blocks, tokens, keeps);
    const receiving = pools.kv.receive({ state, blocks: hold, skipTokens: skip });
    receives.set(number, { pools, receiving, blocks, hold, first, tokens, skip });
    void (async () => {
      for await (const arrived of receiving.progress) process.send({ arrived: `${number} ${arrived}` });
    })().catch(() => {});
  },
  async received({ number }) {
    const { pools, receiving, blocks, hold, first, tokens, skip } = receives.get(number);
    receives.delete(number);
    const { path, bytes } = await receiving.done;
    await receiving.released;
    const from = first * pools.layout.tokensPerBlock;
    const wrong = findWrongMove(pools, number, blocks.ids, { from, skip, tokens });
    for (const held of [blocks, hold]) held.release();
    return { path, bytes, wrong };
  },
  /** Blocks that are neither free nor the engine's, and what was not as it should be. */
  held({ at }) {
    const { kv, all } = instances.get(at);
    const { blocks, sends: sent, receives: received, mismatches } = kv.stats();
    const held = all === null ? blocks.held : all.ids.filter((id) => kv.pool.references(id) > 1).length;
    return [held, sent.open, sent.failed, received.open, received.failed, mismatches];
  },
  async close({ at }) {
    await instances.get(at).kv.close();
    instances.delete(at);
  },
};

serveCommands(commands);
