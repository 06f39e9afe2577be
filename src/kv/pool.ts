import { KvError } from "../errors.ts";
import type { BlockId } from "../ids.ts";

/**
 * Who holds which block. The one owner of block ids and reference counts (design.md section 2): scheduler, prefix cache and transfer
 * sessions hold `BlockHold`s and free through nothing else. Memory itself belongs to the data plane.
 */
export class BlockPool {
  readonly total: number;
  readonly blockBytes: number;
  readonly #references: Uint16Array;
  readonly #free: number[];
  readonly #hooks: PoolHooks[] = [];
  readonly #waiters = new Set<() => void>();

  constructor(options: { readonly blocks: number; readonly blockBytes: number; readonly hooks?: PoolHooks }) {
    this.total = options.blocks;
    this.blockBytes = options.blockBytes;
    this.#references = new Uint16Array(options.blocks);
    // Popped from the end: low ids first, so that a fresh pool hands out adjacent blocks, which copy as one run.
    this.#free = Array.from({ length: options.blocks }, (_, index) => options.blocks - 1 - index);
    if (options.hooks !== undefined) this.#hooks.push(options.hooks);
  }

  get free(): number {
    return this.#free.length;
  }

  /** @throws KvError OUT_OF_BLOCKS when fewer than `count` are free; then nothing was taken */
  allocate(count: number): BlockHold {
    if (count > this.#free.length) {
      throw new KvError("OUT_OF_BLOCKS", { wanted: count, free: this.#free.length, total: this.total });
    }
    const ids = this.#free.splice(this.#free.length - count, count).reverse() as BlockId[];
    for (const hooks of this.#hooks) hooks.taken?.(ids);
    for (const id of ids) this.#references[id] = 1;
    return new BlockHold(this, ids);
  }

  /**
   * A second hold on blocks that are held, in this order: for an engine that gives out the ids itself and so has allocated the whole pool.
   * @throws KvError INVALID_ARGUMENT for an id that is free or none of the pool's
   */
  share(ids: readonly number[]): BlockHold {
    const stray = ids.find((id) => this.references(id as BlockId) === 0);
    if (stray !== undefined) throw new KvError("INVALID_ARGUMENT", { what: `block ${stray}`, why: "nobody holds it" });
    const held = ids as readonly BlockId[];
    this.retain(held);
    return new BlockHold(this, [...held]);
  }

  references(id: BlockId): number {
    return this.#references[id] ?? 0;
  }

  /** Calls `listener` after blocks became free; returns its remover. */
  onFreed(listener: () => void): () => void {
    this.#waiters.add(listener);
    return () => this.#waiters.delete(listener);
  }

  /** For the memory of one more rank whose blocks have these ids. @internal */
  addHooks(hooks: PoolHooks): void {
    this.#hooks.push(hooks);
  }

  /** @internal */
  retain(ids: readonly BlockId[]): void {
    for (const id of ids) {
      const count = this.#references[id] ?? 0;
      if (count === 0) throw new KvError("INTERNAL", { where: "BlockPool.retain", why: `block ${id} is free` });
      this.#references[id] = count + 1;
    }
  }

  /** @internal */
  release(ids: readonly BlockId[]): void {
    const freed: BlockId[] = [];
    for (const id of ids) {
      const count = this.#references[id] ?? 0;
      if (count === 0)
        throw new KvError("INTERNAL", { where: "BlockPool.release", why: `block ${id} is already free` });
      this.#references[id] = count - 1;
      if (count === 1) freed.push(id);
    }
    if (freed.length === 0) return;
    for (const hooks of this.#hooks) hooks.freed?.(freed);
    for (let index = freed.length - 1; index >= 0; index--) this.#free.push(freed[index] as BlockId);
    for (const listener of [...this.#waiters]) listener();
  }
}

/** Called with blocks that change between free and held; KVT_CHECK fills and verifies them here. */
export interface PoolHooks {
  taken?(ids: readonly BlockId[]): void;
  freed?(ids: readonly BlockId[]): void;
}

/** The right to use some blocks, in token order. Ends once, by `release` (or `using`). */
export class BlockHold implements Disposable {
  readonly pool: BlockPool;
  readonly ids: readonly BlockId[];
  #released = false;

  /** @internal use allocate, share or join */
  constructor(pool: BlockPool, ids: readonly BlockId[]) {
    this.pool = pool;
    this.ids = ids;
  }

  get released(): boolean {
    return this.#released;
  }

  /** A second hold on the blocks of [from, to) of this one; each must be released. */
  share(from = 0, to: number = this.ids.length): BlockHold {
    if (this.#released) throw new KvError("CLOSED", { what: "this block hold" });
    const ids = this.ids.slice(from, to);
    this.pool.retain(ids);
    return new BlockHold(this.pool, ids);
  }

  /** One hold on the blocks of all of `holds`, which end: their blocks are held by the result. */
  static join(pool: BlockPool, holds: readonly BlockHold[]): BlockHold {
    for (const hold of holds) {
      if (hold.#released) throw new KvError("CLOSED", { what: "a joined block hold" });
    }
    for (const hold of holds) hold.#released = true;
    return new BlockHold(
      pool,
      holds.flatMap((hold) => hold.ids),
    );
  }

  /** Idempotent. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.pool.release(this.ids);
  }

  [Symbol.dispose](): void {
    this.release();
  }
}
