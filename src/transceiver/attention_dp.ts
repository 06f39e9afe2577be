import { KvError } from "../errors.ts";
import type { TransceiverHealth } from "./api.ts";
import { type InstanceOptions, KvInstance } from "./instance.ts";
import { joinHealth } from "./joined_health.ts";

export interface AttentionDpOptions extends Omit<InstanceOptions, "dpRank"> {
  /** Groups that `tpSize` ranks are divided into. Each has a pool of `pool.blocks` blocks. */
  readonly dpSize: number;
}

/**
 * A worker under attention DP: its TP ranks are `dpSize` groups, and each request's KV lies in one of them alone, its heads spread over the
 * group's ranks. To peers a group is an instance of its own: the state that `send` gives names the group's ranks only.
 */
export class KvAttentionDp implements AsyncDisposable {
  /** By DP rank. */
  readonly groups: readonly KvInstance[];
  /** DP ranks, the one chosen longest ago first. */
  readonly #order: number[];

  private constructor(groups: readonly KvInstance[]) {
    this.groups = groups;
    this.#order = [...groups.keys()];
  }

  /**
   * Opens every group. With `listen.port` rank r of group g listens at port + g * (ranks of a group) + r.
   * @throws KvError as KvInstance.open; INVALID_ARGUMENT when dpSize does not divide tpSize
   */
  static async open(options: AttentionDpOptions): Promise<KvAttentionDp> {
    const { dpSize, tpSize, listen, ...common } = options;
    if (!Number.isInteger(dpSize) || dpSize < 1 || tpSize % dpSize !== 0) {
      const why = `${tpSize} TP ranks can't be divided into so many groups`;
      throw new KvError("INVALID_ARGUMENT", { what: `dpSize ${dpSize}`, why });
    }
    const groupSize = (tpSize / dpSize) * common.ppSize;
    const groups: KvInstance[] = [];
    try {
      for (let dpRank = 0; dpRank < dpSize; dpRank++) {
        const port = listen === undefined || listen.port === 0 ? 0 : listen.port + dpRank * groupSize;
        const at = listen === undefined ? {} : { listen: { ...listen, port } };
        groups.push(await KvInstance.open({ ...common, ...at, tpSize: tpSize / dpSize, dpRank }));
      }
      return new KvAttentionDp(groups);
    } catch (error) {
      await Promise.all(groups.map((group) => group.close()));
      throw error;
    }
  }

  /** The DP rank for a new request: the group with the most free blocks, of equals the one chosen longest ago. */
  choose(): number {
    let best = this.#order[0] ?? 0;
    for (const dpRank of this.#order) {
      if (this.#free(dpRank) > this.#free(best)) best = dpRank;
    }
    this.#order.push(...this.#order.splice(this.#order.indexOf(best), 1));
    return best;
  }

  /** As its worst group. */
  health(): TransceiverHealth {
    return joinHealth(this.groups.map((group, dpRank) => [`DP rank ${dpRank}`, group.health()]));
  }

  async drain(): Promise<void> {
    await Promise.all(this.groups.map((group) => group.drain()));
  }

  async close(): Promise<void> {
    await Promise.all(this.groups.map((group) => group.close()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #free(dpRank: number): number {
    return this.groups[dpRank]?.pool.free ?? -1;
  }
}
