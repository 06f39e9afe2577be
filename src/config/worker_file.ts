import { z } from "zod";
import { ClusterSection } from "./cluster_section.ts";

// Every key is optional and may be null: null means the default (S8). Where null says something of its own (backend,
// kv_transfer_timeout_ms) the resolver tells it from an absent key. Defaults live in worker_settings.ts, not here, because
// environment and flags stand between the two (S10).
export const positiveInt = z.int().min(1);
export const wholeNumber = z.int().min(0);
const milliseconds = z.int().min(1);

export const Backend = z.enum(["DEFAULT", "UCX", "NIXL", "MOONCAKE", "MPI"]);
export type Backend = z.infer<typeof Backend>;

/** `cache_transceiver_config` (S13-S29). Unknown keys are errors. */
export const CacheTransceiverSection = z.strictObject({
  backend: Backend.nullish(),
  max_tokens_in_buffer: positiveInt.nullish(),
  kv_transfer_timeout_ms: milliseconds.nullish(),
  kv_transfer_sender_future_timeout_ms: milliseconds.nullish(),
  kv_transfer_poll_interval_ms: milliseconds.nullish(),
  transceiver_runtime: z.enum(["CPP", "PYTHON", "auto"]).nullish(),
  kv_cache_bounce_size_mb: wholeNumber.nullish(),
  enable_pipelined_transfer: z.boolean().nullish(),
});
export type CacheTransceiverSection = z.infer<typeof CacheTransceiverSection>;

export const KvCacheDtype = z.enum(["auto", "float32", "bfloat16", "float16", "fp8", "nvfp4"]);

/** `kv_cache_config` (S31); other keys of TensorRT-LLM's section of that name are taken out before (llm_args.ts). */
export const KvCacheSection = z.strictObject({
  enable_block_reuse: z.boolean().nullish(),
  enable_partial_reuse: z.boolean().nullish(),
  event_buffer_max_size: wholeNumber.nullish(),
  tokens_per_block: positiveInt.nullish(),
  dtype: KvCacheDtype.nullish(),
  free_gpu_memory_fraction: z.number().gt(0).max(1).nullish(),
  max_attention_window: z.array(positiveInt).min(1).nullish(),
  max_tokens: positiveInt.nullish(),
});
export type KvCacheSection = z.infer<typeof KvCacheSection>;

/** Keys that a worker file has and that a router file may carry at its top level or in a server section (S38, S172). */
export const workerKeys = {
  backend: z.enum(["pytorch", "tensorrt", "trt", "_autodeploy", "reference"]).nullish(),
  disable_overlap_scheduler: z.boolean().nullish(),
  tensor_parallel_size: positiveInt.nullish(),
  pipeline_parallel_size: positiveInt.nullish(),
  pp_partition: z.array(positiveInt).min(1).nullish(),
  context_parallel_size: positiveInt.nullish(),
  max_batch_size: positiveInt.nullish(),
  max_num_tokens: positiveInt.nullish(),
  max_seq_len: positiveInt.nullish(),
  max_beam_width: positiveInt.nullish(),
  enable_chunked_prefill: z.boolean().nullish(),
  kv_cache_config: KvCacheSection.nullish(),
  cache_transceiver_config: CacheTransceiverSection.nullish(),
};

/** The worker's YAML (`--config`, S12-S36), after old names were renamed and foreign LLM arguments taken out. */
export const WorkerFile = z.strictObject({
  ...workerKeys,
  return_perf_metrics: z.boolean().nullish(),
  perf_metrics_max_requests: wholeNumber.nullish(),
  disagg_cluster: ClusterSection.nullish(),
});
export type WorkerFile = z.infer<typeof WorkerFile>;
