import { KvError } from "../errors.ts";
import { type Epoch, newEpoch } from "../ids.ts";
import { blockBytesOf, headBytesOf, type Layout, planesOf } from "../kv/layout.ts";
import { BlockPool } from "../kv/pool.ts";
import type { NativeDataPlane, NativePoolSpan } from "../native/binding.ts";
import { loadNative } from "../native/loader.ts";
import type {
  CancelOutcome,
  EndedSend,
  OpenOptions,
  ReceiveTransfer,
  SendTransfer,
  Transceiver,
  TransceiverHealth,
  TransceiverStats,
} from "./api.ts";

const NONE = { open: 0, leased: 0, completed: 0, failed: 0, cancelled: 0 };

/** The pool alone: a worker that moves no KV runs on it. Sessions follow in this file. */
export class KvTransceiver implements Transceiver {
  readonly epoch: Epoch;
  readonly instance = `pid:${process.pid}`;
  readonly pool: BlockPool;
  readonly layout: Layout;
  readonly endpoints = { tcp: "", unix: null };
  readonly span: NativePoolSpan;
  readonly memory: ArrayBuffer;
  readonly #plane: NativeDataPlane;

  private constructor(options: OpenOptions, epoch: Epoch, plane: NativeDataPlane) {
    this.epoch = epoch;
    this.layout = options.layout;
    this.#plane = plane;
    this.pool = new BlockPool({ blocks: options.pool.blocks, blockBytes: blockBytesOf(options.layout) });
    this.span = plane.span;
    this.memory = plane.memory;
  }

  static async open(options: OpenOptions): Promise<KvTransceiver> {
    const { layout } = options;
    const epoch = newEpoch();
    const plane = await loadNative().openDataPlane(
      {
        layout: {
          layers: layout.layers,
          planes: planesOf(layout),
          heads: layout.kvHeads,
          tokensPerBlock: layout.tokensPerBlock,
          headBytes: headBytesOf(layout),
        },
        blocks: options.pool.blocks,
        epoch,
        check: false,
      },
      () => {},
    );
    return new KvTransceiver(options, epoch, plane);
  }

  send(): SendTransfer {
    throw notProvided("send");
  }

  receive(): ReceiveTransfer {
    throw notProvided("receive");
  }

  release(_state: string): CancelOutcome {
    return "not_found";
  }

  async waitForSenders(): Promise<readonly EndedSend[]> {
    return [];
  }

  stats(): TransceiverStats {
    const { total, free } = this.pool;
    return {
      blocks: { total, free, held: total - free, pinned: 0, quarantined: 0 },
      sends: NONE,
      receives: NONE,
      bytesReceived: 0,
      peers: [],
      dropped: {},
    };
  }

  health(): TransceiverHealth {
    return { status: "ok", reasons: [] };
  }

  async drain(): Promise<void> {}

  async close(): Promise<void> {
    await this.#plane.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

const notProvided = (what: string): KvError =>
  new KvError("NOT_PROVIDED", { what, why: "transfers are being built", remedy: "use a later version" });
