import type { Candidate } from "./chosen.ts";
import type { LogLevel, ServerRole } from "./settings.ts";

/** Values of `kvt serve`'s flags, by canonical name; only those given. `origin` is the flag as written. */
export interface WorkerFlagValues {
  host: string;
  port: number;
  backend: string;
  log_level: LogLevel;
  tensor_parallel_size: number;
  pipeline_parallel_size: number;
  context_parallel_size: number;
  max_batch_size: number;
  max_num_tokens: number;
  max_seq_len: number;
  max_beam_width: number;
  free_gpu_memory_fraction: number;
  enable_chunked_prefill: boolean;
  chat_template: string;
  otlp_traces_endpoint: string;
  server_role: ServerRole;
  metadata_server_config_file: string;
  disagg_cluster_uri: string;
  served_model_name: string;
  strict_model: boolean;
  max_body_mb: number;
  max_queue_size: number;
  device: string;
}

/** Values of `kvt disaggregated`'s flags. */
export interface RouterFlagValues {
  metadata_server_config_file: string;
  server_start_timeout: number;
  request_timeout: number;
  log_level: LogLevel;
  metrics_log_interval: number;
  strict_model: boolean;
  max_body_mb: number;
}

export type Flags<Values> = { readonly [Name in keyof Values]?: Candidate<Values[Name]> };
