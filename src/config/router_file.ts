import { z } from "zod";
import { ClusterSection } from "./cluster_section.ts";
import { positiveInt, wholeNumber, workerKeys } from "./worker_file.ts";

export const RouterType = z.enum(["round_robin", "load_balancing", "kv_cache_aware", "conversation"]);
export type RouterType = z.infer<typeof RouterType>;

/** `router` of a server section: the policy and its arguments (S43, S128-S131). */
export const RouterSection = z.strictObject({
  type: RouterType.nullish(),
  use_tokens: z.boolean().nullish(),
  max_batch_size: positiveInt.nullish(),
  max_num_tokens: positiveInt.nullish(),
  tokens_per_block: positiveInt.nullish(),
  custom_tokenizer: z.string().nullish(),
  backfill_block_hashes_on_finish: z.boolean().nullish(),
  match_threshold: z.number().min(0).max(1).nullish(),
  use_token_ids: z.boolean().nullish(),
  hash_skip_count: wholeNumber.nullish(),
  max_sessions: positiveInt.nullish(),
  disagg_node_id: wholeNumber.nullish(),
});
export type RouterSection = z.infer<typeof RouterSection>;

/** `context_servers` or `generation_servers` (S40-S43). */
export const ServerSection = z.strictObject({
  ...workerKeys,
  model: z.string().min(1).nullish(),
  num_instances: wholeNumber.nullish(),
  urls: z.array(z.string().min(1)).nullish(),
  router: RouterSection.nullish(),
});
export type ServerSection = z.infer<typeof ServerSection>;

/** The router's YAML (`disaggregated -c`, S37-S53), after old names were renamed and foreign keys taken out. */
export const RouterFile = z.strictObject({
  ...workerKeys,
  hostname: z.string().min(1).nullish(),
  port: z.int().min(1).max(65535).nullish(),
  model: z.string().min(1).nullish(),
  context_servers: ServerSection.nullish(),
  generation_servers: ServerSection.nullish(),
  conditional_disagg_config: z.strictObject({ max_local_prefill_length: wholeNumber.nullish() }).nullish(),
  otlp_config: z.strictObject({ otlp_traces_endpoint: z.string().min(1).nullish() }).nullish(),
  max_retries: wholeNumber.nullish(),
  return_perf_metrics: z.boolean().nullish(),
  perf_metrics_max_requests: wholeNumber.nullish(),
  perf_metrics_output_dir: z.string().min(1).nullish(),
  node_id: z.int().min(0).max(255).nullish(),
  schedule_style: z.enum(["context_first", "generation_first"]).nullish(),
  disagg_cluster: ClusterSection.nullish(),
  allow_request_chat_template: z.boolean().nullish(),
  gen_strip_message_history: z.boolean().nullish(),
  gen_tokids_ctxbytes: z.boolean().nullish(),
  num_workers: positiveInt.nullish(),
  disagg_coordinator_url: z.string().min(1).nullish(),
});
export type RouterFile = z.infer<typeof RouterFile>;
