/** kv-transceiver: moves the KV cache between the workers of disaggregated LLM serving. The public API of the package. */
export { type ErrorCode, type ErrorScope, isKvError, KvError } from "./errors.ts";
export {
  type BlockId,
  type Epoch,
  type RequestId,
  requestId,
  requestIdToBigInt,
} from "./ids.ts";
export { blockBytesOf, blocksFor, liveBlocksFor } from "./kv/layout.ts";
export type { BlockOrder, GroupPlacement, Placement } from "./kv/placement.ts";
export type { BlockHold, BlockPool } from "./kv/pool.ts";
export type { Parallel, ParallelSizes } from "./kv/ranks.ts";
export {
  type InstanceLayout,
  instanceDifferences,
  type Layout,
  type LayoutGroup,
  layoutDifferences,
} from "./layout.ts";
export type {
  CancelOutcome,
  EndedSend,
  NixlAgentStats,
  OpenOptions,
  ReceiveOptions,
  ReceiveTransfer,
  SendOptions,
  SendTransfer,
  Transceiver,
  TransceiverConfig,
  TransceiverHealth,
  TransceiverStats,
  TransferReport,
} from "./transceiver/api.ts";
export { type AttentionDpOptions, KvAttentionDp } from "./transceiver/attention_dp.ts";
export { type BlockTablesOptions, KvBlockTables, type TableBlocks } from "./transceiver/block_tables.ts";
export { type InstanceOptions, KvInstance } from "./transceiver/instance.ts";
export { joinStates } from "./transceiver/opaque_state.ts";
export { KvTransceiver } from "./transceiver/transceiver.ts";
