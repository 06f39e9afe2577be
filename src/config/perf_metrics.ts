import type { Chosen } from "./chosen.ts";
import type { FileSection } from "./file_section.ts";
import type { Problems } from "./problems.ts";

interface PerfMetricsKeys {
  readonly return_perf_metrics?: boolean | null | undefined;
  readonly perf_metrics_max_requests?: number | null | undefined;
}

/**
 * How many records GET /perf_metrics keeps (S32, S47). A worker needs both keys, as in TensorRT-LLM; a router, which had only the second
 * one at first, needs that.
 */
export function perfMetricsMaxRequests(
  file: FileSection<PerfMetricsKeys>,
  chosen: Chosen,
  problems: Problems,
  server: "worker" | "router",
): number {
  const wanted = chosen.pick<boolean>("return_perf_metrics", false, { file: file.value("return_perf_metrics") });
  const key = "perf_metrics_max_requests";
  const max = chosen.pick<number>(key, 0, { file: file.value(key) });
  if (wanted && max === 0) {
    file.report(problems, "note", "return_perf_metrics", `no record is kept: ${key} is 0`);
  } else if (!wanted && max > 0 && server === "worker") {
    file.report(problems, "warning", key, "no record is kept: return_perf_metrics is not true");
    return 0;
  }
  return max;
}
