import type { VerifyMode } from "./kvt_file.ts";
import type { RouterType } from "./router_file.ts";

export const logLevels = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
export type LogLevel = (typeof logLevels)[number];

export const serverRoles = ["CONTEXT", "GENERATION", "MM_ENCODER"] as const;
export type ServerRole = (typeof serverRoles)[number];

/** Where an effective value came from (S9): `default`, `file:line`, `env NAME`, `--flag`. */
export interface EffectiveValue {
  /** Dotted key as the YAML writes it, or the flag's name without dashes. */
  readonly key: string;
  readonly value: unknown;
  readonly origin: string;
}

/** `cache_transceiver_config` as it takes effect. */
export interface TransceiverSettings {
  readonly backend: "DEFAULT" | "UCX" | "NIXL";
  readonly maxTokensInBuffer: number | null;
  /** null: a transfer has no bound of its own, lease and stall timer decide (S23). */
  readonly kvTransferTimeoutMs: number | null;
  readonly kvTransferSenderFutureTimeoutMs: number;
  /** Published in /server_info only (S27). */
  readonly transceiverRuntime: "CPP" | "PYTHON" | "auto" | null;
}

/** All that `startWorker` (src/worker/server.ts) needs; every value checked and resolved. */
export interface WorkerSettings {
  /** The MODEL argument: path of a GGUF file. */
  readonly model: string;
  /** Name in `/v1/models` and answers: --served_model_name, else the file's stem (S123). */
  readonly servedModelName: string;
  readonly strictModel: boolean;
  readonly chatTemplate: string | null;
  readonly host: string;
  /** 0: a free port. */
  readonly port: number;
  /** --server_role; null: each request says what it wants. */
  readonly role: ServerRole | null;
  readonly logLevel: LogLevel;
  /** null: no transceiver; disaggregated requests are answered 400 `transceiver_disabled` (S13). */
  readonly transceiver: TransceiverSettings | null;
  readonly kvCache: {
    readonly enableBlockReuse: boolean;
    /** Also of blocks that only begin as a prompt does; no effect without the first. */
    readonly enablePartialReuse: boolean;
    /** KV events that wait for a reader; 0: there are none; null: as many as the worker likes, once a reader asks. */
    readonly eventBufferMaxSize: number | null;
    readonly tokensPerBlock: number;
    readonly dtype: "auto" | "f32" | "bf16";
    /** Of the memory that is free at start, in (0, 1]. Used when `maxTokens` is null. */
    readonly freeMemoryFraction: number;
    /** Tokens that the whole pool holds. */
    readonly maxTokens: number | null;
  };
  /** Ranks that the KV cache is spread over: heads (TP) and layers (PP). */
  readonly tensorParallelSize: number;
  readonly pipelineParallelSize: number;
  /** Layers of each stage; null: as even as can be. */
  readonly ppPartition: readonly number[] | null;
  readonly maxBatchSize: number;
  /** Tokens computed in one step; also the longest prompt that is admitted unless prefill is chunked. */
  readonly maxNumTokens: number;
  /** null: what the model allows. */
  readonly maxSeqLen: number | null;
  readonly enableChunkedPrefill: boolean;
  /** Waiting requests above which 429 is answered. */
  readonly maxQueueSize: number;
  readonly maxBodyBytes: number;
  /** Records that GET /perf_metrics keeps; 0 without return_perf_metrics. */
  readonly perfMetricsMaxRequests: number;
  /** Control endpoint of the transceiver. */
  readonly control: {
    readonly host: string;
    readonly port: number;
    /** PEM text, read and checked. */
    readonly tls: { readonly cert: string; readonly key: string; readonly ca: string | null } | null;
  };
  readonly lease: { readonly leaseMs: number; readonly stallMs: number; readonly strict: boolean };
  readonly transfer: {
    /** This path and no other; null: the cheapest that works. */
    readonly path: "shared_memory" | "nixl_direct" | "nixl_staged" | null;
    /** false: workers of this host are reached as those of others are. */
    readonly sameHost: boolean;
    /** KV of a prefill that is streamed is handed over layer by layer. */
    readonly layerwise: boolean;
    /** What a receiver compares with digests of the sender: none, one block in 16, all. */
    readonly verify: VerifyMode;
    /** Context requests whose KV was not fetched yet; more are answered 429. */
    readonly maxOffers: number;
    /** Of path nixl_staged, a direction. */
    readonly stagingSlots: number;
    /** Receives at the same time, in all and from one peer; the others wait, the smallest first. */
    readonly maxReceives: number;
    readonly maxReceivesPerPeer: number;
    /** What one peer may fetch from here at the same time. */
    readonly maxSendsPerPeer: number;
  };
  /** KVT_AUTH_TOKEN. */
  readonly authToken: string | null;
  /** KVT_SOCKET_DIR. */
  readonly socketDir: string | null;
}

export interface WorkerAddress {
  /** As the file writes it. */
  readonly url: string;
  /** `http://host:port` or `https://host:port`, no trailing slash. */
  readonly origin: string;
}

export interface ServerGroupSettings {
  readonly servers: readonly WorkerAddress[];
  readonly policy: RouterType;
}

/** All that `startRouter` (src/router/server.ts) needs. */
export interface RouterSettings {
  readonly host: string;
  readonly port: number;
  readonly logLevel: LogLevel;
  /** Model of the file, only the client's default; the router learns the names from its workers. */
  readonly model: string | null;
  readonly strictModel: boolean;
  readonly context: ServerGroupSettings;
  readonly generation: ServerGroupSettings;
  /** Whether prefill and decode start one after the other or together (S49). */
  readonly scheduleStyle: "context_first" | "generation_first";
  /** Tries after the first, per hop (S46, S133); 0 with TRTLLM_DISAGG_NO_RETRY=1. */
  readonly maxRetries: number;
  /** Node part of request ids, 0..255. */
  readonly nodeId: number;
  readonly allowRequestChatTemplate: boolean;
  readonly serverStartTimeoutMs: number;
  /** To the first byte, and for silence between bytes (S104). */
  readonly requestTimeoutMs: number;
  /** 0: off. */
  readonly metricsLogIntervalMs: number;
  readonly maxBodyBytes: number;
  /** Requests whose records GET /perf_metrics joins; 0: none. */
  readonly perfMetricsMaxRequests: number;
  readonly authToken: string | null;
}
