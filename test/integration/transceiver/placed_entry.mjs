// Instances of any layout, placement and number of ranks in a process of their own, driven over IPC by placed_peer.ts. Runs dist/, as a user
// of the package would.
import { KvBlockTables, KvInstance, KvTransceiver, requestId } from "../../../dist/index.js";
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
async function adoptedOf({ pool, ...options }, { regions, ...files }) {
  const fds = await memfdsOf(files);
  const adopt = regions.map(({ file, offset, bytes }) => ({ fd: fds[file], offset, bytes }));
  return { ...options, pool: { ...pool, adopt } };
}

/** What one block table names: an instance or a rank, or one kind of a rank's layers. */
const tableOf = (name, { ranks, layout }) => ({ name, ranks, layout });

async function open({ sizes, ...options }, adopted) {
  if (adopted === undefined) {
    const kv = await KvInstance.open({ ...options, ...sizes });
    return { kv, pool: kv.pool, all: null, tables: [tableOf(null, kv)] };
  }
  const { tables: kinds, ...rest } = await adoptedOf(options, adopted);
  if (kinds === undefined) {
    const kv = await KvTransceiver.open(rest);
    return { kv, pool: kv.pool, all: null, tables: [tableOf(null, { ranks: [kv], layout: kv.layout })] };
  }
  // Such an engine gives out the ids itself.
  const kv = await KvBlockTables.open({ ...rest, tables: kinds });
  const tables = [...kv.transceivers].map(([name, one]) => tableOf(name, { ranks: [one], layout: one.layout }));
  return { kv, pool: kv.pool, all: kv.pool.allocate(kv.pool.total), tables };
}

/**
 * The blocks of a sequence in each table: some that are free, or those that an engine says which gives out its ids itself; of those the last,
 * that hold the last `keeps` tokens.
 */
const take = ({ pool, tables }, { tokens, ids, keeps }) =>
  tables.map(({ name, ...table }) => {
    const { tokensPerBlock } = table.layout;
    const count = Math.ceil(tokens / tokensPerBlock);
    const blocks = name === null ? pool.allocate(count) : pool.share(ids[name].slice(0, count));
    const kept = name === null ? keeps : keeps[name];
    const first = kept === null ? 0 : Math.floor(Math.max(0, tokens - kept) / tokensPerBlock);
    return { name, pools: table, blocks, first, hold: blocks.share(first) };
  });

/** As `send` and `receive` want them. */
const holdsOf = (parts) =>
  parts[0].name === null ? parts[0].hold : Object.fromEntries(parts.map(({ name, hold }) => [name, hold]));

/** The blocks that no window reaches belong to another sequence at once. */
function giveBack({ pool, all }, { pools, blocks, first }, number) {
  if (first === 0) return null;
  const behind = blocks.ids.slice(0, first);
  blocks.release();
  const successor = all === null ? pool.allocate(first) : pool.share(behind);
  writeKv(pools, number + SUCCESSOR, successor.ids, 0, first * pools.layout.tokensPerBlock);
  return successor;
}

const commands = {
  /** `adopted`: see AdoptedPool in placed_peer.ts. */
  async open({ at, options, adopted }) {
    instances.set(at, await open(options, adopted));
  },
  /** Tokens [0, ready) are computed. */
  send({ at, number, tokens, ready, ...which }) {
    const instance = instances.get(at);
    const parts = take(instance, { tokens, ...which });
    for (const { pools, blocks } of parts) writeKv(pools, number, blocks.ids, 0, ready);
    const sending = instance.kv.send({ requestId: requestId(number), tokens, blocks: holdsOf(parts), ready });
    const successors = ready < tokens ? [] : parts.map((part) => giveBack(instance, part, number));
    sends.set(number, { sending, parts, successors, ready });
    return { state: sending.state };
  },
  ready({ number, tokens }) {
    const send = sends.get(number);
    for (const { pools, blocks } of send.parts) writeKv(pools, number, blocks.ids, send.ready, tokens);
    send.ready = tokens;
    send.sending.ready(tokens);
  },
  async sent({ number }) {
    const { sending, parts, successors } = sends.get(number);
    sends.delete(number);
    for (const held of [...parts.flatMap(({ blocks, hold }) => [blocks, hold]), ...successors]) held?.release();
    return { path: (await sending.done).path };
  },
  /** Of which the first `skip` tokens are here already. */
  receive({ at, number, state, tokens, skip, ...which }) {
    const instance = instances.get(at);
    const parts = take(instance, { tokens, ...which });
    for (const { pools, blocks } of parts) {
      wipeKv(pools, blocks.ids);
      writeKv(pools, number, blocks.ids, 0, skip);
    }
    const receiving = instance.kv.receive({ state, blocks: holdsOf(parts), skipTokens: skip });
    receives.set(number, { receiving, parts, tokens, skip });
    void (async () => {
      for await (const arrived of receiving.progress) process.send({ arrived: `${number} ${arrived}` });
    })().catch(() => {});
  },
  async received({ number }) {
    const { receiving, parts, tokens, skip } = receives.get(number);
    receives.delete(number);
    const { path, bytes } = await receiving.done;
    await receiving.released;
    const wrongs = parts.map(({ pools, blocks, first }) => {
      const from = first * pools.layout.tokensPerBlock;
      return findWrongMove(pools, number, blocks.ids, { from, skip, tokens });
    });
    for (const { blocks, hold } of parts) for (const held of [blocks, hold]) held.release();
    return { path, bytes, wrong: wrongs.find((wrong) => wrong !== null) ?? null };
  },
  /** Blocks that are neither free nor the engine's, and what was not as it should be. */
  held({ at }) {
    const { kv, pool, all, tables } = instances.get(at);
    const held = all === null ? pool.total - pool.free : all.ids.filter((id) => pool.references(id) > 1).length;
    const stats = kv.stats === undefined ? tables.map(({ ranks: [one] }) => one.stats()) : [kv.stats()];
    const rest = stats.map(({ sends: sent, receives: received, mismatches }) => [
      ...[sent.open, sent.failed, received.open, received.failed],
      mismatches,
    ]);
    return [held, ...rest.flat()].filter((count) => count !== 0);
  },
  async close({ at }) {
    await instances.get(at).kv.close();
    instances.delete(at);
  },
};

serveCommands(commands);
