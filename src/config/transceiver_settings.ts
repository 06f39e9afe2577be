import type { Chosen } from "./chosen.ts";
import type { Environment } from "./environment.ts";
import type { FileSection } from "./file_section.ts";
import type { Problems } from "./problems.ts";
import type { TransceiverSettings } from "./settings.ts";
import type { Backend, CacheTransceiverSection } from "./worker_file.ts";

const DEFAULT_TIMEOUT_MS = 60_000;
const DEFAULT_SENDER_FUTURE_MS = 1_000;
const DEFAULT_POLL_MS = 5_000;

/** `cache_transceiver_config` as it takes effect (S13-S29); null: no transceiver. */
export function transceiverSettings(
  section: FileSection<CacheTransceiverSection>,
  environment: Environment,
  tokensPerBlock: number,
  chosen: Chosen,
  problems: Problems,
): TransceiverSettings | null {
  const wanted = chosen.pick<Backend | null>(section.name("backend"), null, { file: section.given("backend") });
  if (wanted === null) return null;
  const backend = usableBackend(wanted, environment, (kind, text) => section.report(problems, kind, "backend", text));
  noteBounce(section, chosen, problems);
  notePolling(section, chosen, problems);
  notePipelining(section, chosen, problems);
  return {
    backend,
    maxTokensInBuffer: tokensInBuffer(section, tokensPerBlock, chosen, problems),
    kvTransferTimeoutMs: transferTimeout(section, chosen, problems),
    kvTransferSenderFutureTimeoutMs: senderFutureTimeout(section, chosen, problems),
    transceiverRuntime: chosen.pick<TransceiverSettings["transceiverRuntime"]>(
      section.name("transceiver_runtime"),
      null,
      { file: section.value("transceiver_runtime") },
    ),
  };
}

function tokensInBuffer(
  section: FileSection<CacheTransceiverSection>,
  tokensPerBlock: number,
  chosen: Chosen,
  problems: Problems,
): number | null {
  const key = "max_tokens_in_buffer";
  const tokens = chosen.pick<number | null>(section.name(key), null, { file: section.value(key) });
  if (tokens === null) return null;
  const whole = Math.ceil(tokens / tokensPerBlock) * tokensPerBlock;
  if (whole !== tokens) {
    section.report(problems, "note", key, `rounded up to ${whole}, whole blocks of ${tokensPerBlock} tokens`);
  }
  section.report(problems, "note", key, "of a staging slot of path nixl_staged; other paths read the peer's blocks");
  return whole;
}

function transferTimeout(
  section: FileSection<CacheTransceiverSection>,
  chosen: Chosen,
  problems: Problems,
): number | null {
  const key = "kv_transfer_timeout_ms";
  const ms = chosen.pick<number | null>(section.name(key), DEFAULT_TIMEOUT_MS, { file: section.given(key) });
  if (ms === null) {
    section.report(problems, "warning", key, "null: a transfer may take for ever; only lease and stall timer end it");
  }
  return ms;
}

function senderFutureTimeout(
  section: FileSection<CacheTransceiverSection>,
  chosen: Chosen,
  problems: Problems,
): number {
  const key = "kv_transfer_sender_future_timeout_ms";
  if (section.given(key)?.value === null) {
    section.report(problems, "note", key, `null means ${DEFAULT_SENDER_FUTURE_MS}: there is no endless wait`);
  }
  return chosen.pick<number>(section.name(key), DEFAULT_SENDER_FUTURE_MS, { file: section.value(key) });
}

function noteBounce(section: FileSection<CacheTransceiverSection>, chosen: Chosen, problems: Problems): void {
  const key = "kv_cache_bounce_size_mb";
  const size = chosen.pick<number>(section.name(key), 0, { file: section.value(key) });
  if (size > 0) section.report(problems, "note", key, "the paths that there are need no bounce region");
}

function notePolling(section: FileSection<CacheTransceiverSection>, chosen: Chosen, problems: Problems): void {
  const key = "kv_transfer_poll_interval_ms";
  const given = section.value(key);
  chosen.pick<number>(section.name(key), DEFAULT_POLL_MS, { file: given });
  if (given) section.report(problems, "note", key, "admission looks at every event here and needs no period");
}

/** Of TensorRT-LLM's conditions (S29) only the schedule is one here, and that is the router's; chunks of prefill are always there. */
function notePipelining(section: FileSection<CacheTransceiverSection>, chosen: Chosen, problems: Problems): void {
  const key = "enable_pipelined_transfer";
  if (!chosen.pick<boolean>(section.name(key), false, { file: section.value(key) })) return;
  const text = "KV is sent while prefill computes whenever the router's file says schedule_style: generation_first";
  section.report(problems, "note", key, text);
}

/** What this version makes of the backend that the file names (S14-S19, S70, S80). */
function usableBackend(
  wanted: Backend,
  environment: Environment,
  report: (kind: "not_built" | "warning" | "note", text: string) => void,
): TransceiverSettings["backend"] {
  let backend = wanted;
  const legacy = environment.legacyBackend;
  if (legacy) {
    const variable = legacy.origin.replace("env ", "");
    if (wanted === "DEFAULT") {
      report("warning", `${variable} chooses ${legacy.value}; write backend: ${legacy.value} instead`);
      // NIXL by the variable is what DEFAULT means anyway, not the explicit demand of the file (S70).
      if (legacy.value !== "NIXL") backend = legacy.value;
    } else {
      report("note", `${variable} is ignored: it counts for backend DEFAULT only`);
    }
  }
  switch (backend) {
    case "MOONCAKE":
      report("not_built", "MOONCAKE is not provided; use NIXL, UCX or DEFAULT");
      return "DEFAULT";
    case "MPI":
      report("warning", "MPI is deprecated and not linked; UCX is used instead");
      return "UCX";
    case "UCX": {
      const plugin = environment.nixlPlugin;
      if (plugin !== undefined && plugin.toUpperCase() !== "UCX") {
        report("note", `TRTLLM_NIXL_KVCACHE_BACKEND=${plugin} is ignored: backend UCX forces the UCX plug-in`);
      }
      return "UCX";
    }
    case "NIXL":
    case "DEFAULT":
      return backend;
  }
}
