import { KvError } from "../errors.ts";
import type { BlockHold, BlockPool } from "../kv/pool.ts";
import { groupsOf, type Layout } from "../layout.ts";
import type {
  CancelOutcome,
  OpenOptions,
  ReceiveBlocks,
  ReceiveByState,
  ReceiveTransfer,
  SendOptions,
  SendTransfer,
  TransceiverHealth,
} from "./api.ts";
import { joinHealth } from "./joined_health.ts";
import { beginAll, joinOutcomes, joinReceives, joinSends } from "./joined_transfers.ts";
import { decodeState, joinTables, tablesOf } from "./opaque_state.ts";
import { KvTransceiver } from "./transceiver.ts";
import type { TransceiverHooks } from "./transceiver_parts.ts";

type AdoptedPool = Extract<OpenOptions["pool"], { readonly adopt: unknown }>;

export interface BlockTablesOptions extends Omit<OpenOptions, "pool" | "listen"> {
  readonly pool: AdoptedPool & Required<Pick<AdoptedPool, "placement">>;
  /** Names of the layout's groups that share a block table, for each table. Peers divide their groups alike, whatever they call the tables. */
  readonly tables: Readonly<Record<string, readonly string[]>>;
  /** Each table's transceiver has a port of its own: the first this one, or a free one. */
  readonly listen?: OpenOptions["listen"];
}

/** Of each table, in token order; those that a window has left may be missing at the beginning, as in `KvTransceiver.send`. */
export type TableBlocks = Readonly<Record<string, BlockHold>>;

/**
 * One rank of an engine that keeps a block table for each kind of its layers (vLLM's hybrid KV cache: pages are handed out to full layers and to
 * those with a window). There is one pool of block ids, a transceiver for each table over the same regions, and a transfer of each for a
 * request: together they are one, complete when all are, and one that fails ends the others.
 */
export class KvBlockTables implements AsyncDisposable {
  /** By the names of `tables`, in the order in which peers pair them. */
  readonly transceivers: ReadonlyMap<string, KvTransceiver>;
  readonly pool: BlockPool;

  private constructor(transceivers: ReadonlyMap<string, KvTransceiver>, pool: BlockPool) {
    this.transceivers = transceivers;
    this.pool = pool;
  }

  /** @throws KvError as KvTransceiver.open; INVALID_ARGUMENT unless each group of the layout is in one table */
  static async open(options: BlockTablesOptions, hooks: TransceiverHooks = {}): Promise<KvBlockTables> {
    const { tables, layout, pool, listen, ...common } = options;
    const opened = new Map<string, KvTransceiver>();
    let first: KvTransceiver | undefined;
    try {
      for (const [name, groups] of pairingOrder(tables, layout)) {
        const port = listen === undefined || listen.port === 0 ? 0 : listen.port + opened.size;
        const transceiver = await KvTransceiver.open(
          {
            ...common,
            layout: { ...layout, groups: layout.groups?.filter((group) => groups.includes(group.name)) },
            pool: { ...pool, placement: only(pool.placement, groups) },
            ...(listen === undefined ? {} : { listen: { ...listen, port } }),
          },
          first === undefined ? hooks : { ...hooks, pool: first.pool },
        );
        first ??= transceiver;
        opened.set(name, transceiver);
      }
      if (first === undefined) throw new KvError("INVALID_ARGUMENT", { what: "options.tables", why: "there is none" });
      return new KvBlockTables(opened, first.pool);
    } catch (error) {
      await Promise.all([...opened.values()].map((transceiver) => transceiver.close()));
      throw error;
    }
  }

  /** As KvTransceiver.send, with the blocks of each table. `state` names the offers of all. */
  send(options: Omit<SendOptions, "blocks"> & { readonly blocks: TableBlocks }): SendTransfer {
    const begins = this.#all.map(
      ([name, transceiver]) =>
        () =>
          transceiver.send({ ...options, blocks: blocksOf(name, options.blocks) }),
    );
    return joinSends(beginAll(begins), joinTables);
  }

  /** As KvTransceiver.receive by a state. @throws KvError LAYOUT_MISMATCH too when the sender has another number of tables */
  receive(options: ReceiveByState & Omit<ReceiveBlocks, "blocks"> & { readonly blocks: TableBlocks }): ReceiveTransfer {
    const states = this.#statesOf(options.state);
    const begins = this.#all.map(([name, transceiver], index) => () => {
      const state = states[index] as string;
      return transceiver.receive({ ...options, state, blocks: blocksOf(name, options.blocks) });
    });
    return joinReceives(beginAll(begins));
  }

  /** As KvTransceiver.release, for the offers of all tables. */
  release(state: string): CancelOutcome {
    const states = tablesOf(state);
    return joinOutcomes(this.#all.map(([, transceiver], index) => transceiver.release(states[index] ?? "")));
  }

  /** As KvTransceiver.decline, for the offers of all tables. */
  decline(state: string): void {
    const states = this.#statesOf(state);
    for (const [index, [, transceiver]] of this.#all.entries()) transceiver.decline(states[index] as string);
  }

  /** As its worst table's. */
  health(): TransceiverHealth {
    return joinHealth(this.#all.map(([name, transceiver]) => [`table ${name}`, transceiver.health()]));
  }

  async drain(): Promise<void> {
    await Promise.all(this.#all.map(([, transceiver]) => transceiver.drain()));
  }

  async close(): Promise<void> {
    await Promise.all(this.#all.map(([, transceiver]) => transceiver.close()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get #all(): readonly (readonly [name: string, transceiver: KvTransceiver])[] {
    return [...this.transceivers];
  }

  #statesOf(state: string): readonly string[] {
    const states = tablesOf(state);
    const { size } = this.transceivers;
    if (states.length === size) return states;
    const peer = decodeState(states[0] ?? "").instance;
    throw new KvError("LAYOUT_MISMATCH", { peer, fields: `block tables here ${size}, there ${states.length}` });
  }
}

/** Of several tables the one with the least name of a group first: what both sides know. @throws KvError INVALID_ARGUMENT */
function pairingOrder(tables: BlockTablesOptions["tables"], layout: Layout) {
  const names = groupsOf(layout).map(({ name }) => name);
  const places = Object.entries(tables).flatMap(([table, groups]) => groups.map((group) => ({ table, group })));
  const stray = places.find(({ group }) => !names.includes(group));
  if (stray !== undefined) {
    throw new KvError("INVALID_ARGUMENT", {
      what: `options.tables.${stray.table}`,
      why: `the layout has no group ${stray.group}`,
    });
  }
  for (const name of names) {
    const count = places.filter(({ group }) => group === name).length;
    if (count !== 1) {
      const why = `the group ${name} is in ${count} tables and must be in one`;
      throw new KvError("INVALID_ARGUMENT", { what: "options.tables", why });
    }
  }
  const rank = (groups: readonly string[]): number => Math.min(...groups.map((name) => names.indexOf(name)));
  return Object.entries(tables).sort(([, left], [, right]) => rank(left) - rank(right));
}

const only = <Value>(all: Readonly<Record<string, Value>>, names: readonly string[]): Record<string, Value> =>
  Object.fromEntries(Object.entries(all).filter(([name]) => names.includes(name)));

/** @throws KvError INVALID_ARGUMENT */
function blocksOf(table: string, blocks: TableBlocks): BlockHold {
  const hold = blocks[table];
  if (hold === undefined) throw new KvError("INVALID_ARGUMENT", { what: "blocks", why: `table ${table} has none` });
  return hold;
}
