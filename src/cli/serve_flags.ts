import type { FlagTable } from "./arguments.ts";

/** Levels by our names and by trtllm-serve's. */
export const logLevelChoices = {
  trace: "trace",
  debug: "debug",
  verbose: "debug",
  info: "info",
  warn: "warn",
  warning: "warn",
  error: "error",
  fatal: "fatal",
  internal_error: "fatal",
} as const;

const ranks = { kind: "integer", min: 1, max: 1024 } as const;
const accepted = "accepted, without effect here";

/** Flags of `kvt serve` (system.md S99-S102). */
export const serveFlags = {
  host: { kind: "string", help: "address to listen on (default localhost)" },
  port: { kind: "integer", min: 0, max: 65535, help: "HTTP port (default 8000)" },
  config: {
    kind: "string",
    aliases: ["extra_llm_api_options"],
    value: "FILE",
    help: "worker YAML; its values win over flags, as in trtllm-serve",
  },
  kvt_config: { kind: "string", value: "FILE", help: "our own options (YAML): control, lease, transfer" },
  log_level: { kind: "choice", short: "l", choices: logLevelChoices, value: "LEVEL", help: "default info" },
  backend: {
    kind: "choice",
    choices: {
      pytorch: "pytorch",
      tensorrt: "tensorrt",
      trt: "trt",
      _autodeploy: "_autodeploy",
      reference: "reference",
    },
    value: "NAME",
    help: "any of trtllm-serve's names; the engine is always the built-in reference engine",
  },
  server_role: {
    kind: "choice",
    choices: { CONTEXT: "CONTEXT", GENERATION: "GENERATION", MM_ENCODER: "MM_ENCODER" },
    value: "ROLE",
    help: "CONTEXT or GENERATION; without it each request says what it wants",
  },
  served_model_name: {
    kind: "string",
    value: "NAME",
    help: "name in answers and /v1/models (default: the file's stem)",
  },
  strict_model: { kind: "boolean", help: "answer 404 when a request names another model" },
  max_batch_size: { kind: "integer", min: 1, help: "sequences decoded together (default 64)" },
  max_num_tokens: { kind: "integer", min: 1, help: "tokens computed in one step (default 8192)" },
  max_seq_len: { kind: "integer", min: 1, help: "longest sequence (default: what the model allows)" },
  max_queue_size: { kind: "integer", min: 0, help: "requests that may wait before 429 is answered (default 1024)" },
  max_body_mb: { kind: "integer", min: 1, max: 1024, help: "largest request body in MiB (default 64)" },
  free_gpu_memory_fraction: {
    kind: "number",
    min: 0.001,
    max: 1,
    aliases: ["kv_cache_free_gpu_memory_fraction"],
    help: "share of the free memory for the KV cache (default 0.9)",
  },
  enable_chunked_prefill: { kind: "boolean", help: "compute long prompts in pieces of max_num_tokens" },
  chat_template: { kind: "string", value: "FILE|TEXT", help: "Jinja template in place of the model's own" },
  device: { kind: "string", value: "NAME", help: "cpu (default); GPUs are not built yet" },
  tensor_parallel_size: { ...ranks, aliases: ["tp_size"], help: "ranks that the KV heads are spread over (default 1)" },
  pipeline_parallel_size: { ...ranks, aliases: ["pp_size"], help: "ranks that the layers are spread over (default 1)" },
  context_parallel_size: { ...ranks, aliases: ["cp_size"], help: "1; more are not built" },
  max_beam_width: { kind: "integer", min: 1, help: "1; the engine has no beam search" },
  disagg_cluster_uri: { kind: "string", value: "URI", help: "service discovery (not built yet)" },
  metadata_server_config_file: { kind: "string", value: "FILE", help: "metadata server (not built yet)" },
  otlp_traces_endpoint: { kind: "string", value: "URL", help: "tracing (not built yet)" },
  tokenizer: { kind: "string", help: accepted },
  custom_tokenizer: { kind: "string", help: accepted },
  trust_remote_code: { kind: "boolean", help: accepted },
  revision: { kind: "string", help: accepted },
  num_postprocess_workers: { kind: "integer", min: 0, help: accepted },
  reasoning_parser: { kind: "string", help: accepted },
  tool_parser: { kind: "string", help: accepted },
  ep_size: { kind: "integer", min: 1, help: accepted },
  cluster_size: { kind: "integer", min: 1, help: accepted },
  gpus_per_node: { kind: "integer", min: 1, help: accepted },
  fail_fast_on_attention_window_too_large: { kind: "boolean", help: accepted },
  media_io_kwargs: { kind: "string", help: accepted },
} as const satisfies FlagTable;

/** The flags above that change nothing: one warning lists those given. */
export const acceptedServeFlags = Object.entries(serveFlags)
  .filter(([, spec]) => spec.help === accepted)
  .map(([name]) => name as keyof typeof serveFlags);
