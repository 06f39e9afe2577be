// Where the time to the first token went, from the records of GET /perf_metrics. Only stamps of one process are compared with each other;
// what no process saw, the hops between them and their wake-ups, is the rest of what the client measured.
import { median } from "../statistics.mjs";

/** Timing metrics by `x-request-id`. */
async function read(port) {
  const records = await (await fetch(`http://127.0.0.1:${port}/perf_metrics`)).json();
  return new Map(records.map((record) => [record.request_id, record.perf_metrics.timing_metrics]));
}

/** Of the worker that computed the prompt, ms: the client's first token is in its answer, whatever becomes of the KV then. */
const partsOf = (times) => ({
  "before prefill": times.first_scheduled_time - times.server_arrival_time,
  prefill: times.first_token_time - times.first_scheduled_time,
  "to the socket": times.server_first_token_time - times.first_token_time,
});

/**
 * Rows `part_ms WAY: PART`, and `beside_prefill_ms WAY`, all but prefill: that compares ways where other work makes prefills unequal. Medians.
 * @param times ms by `x-request-id`, `WAY-tokens-round`, as the client saw them
 * @param ports of the workers that compute prompts
 */
export async function addParts(add, name, times, ports) {
  const records = await Promise.all(ports.map(read));
  for (const way of ["aggregated", "context-first", "generation-first"]) {
    const parts = new Map();
    const beside = [];
    for (const [id, ms] of times) {
      const record = records.map((known) => known.get(id)).find((found) => found !== undefined);
      if (!id.startsWith(way) || record === undefined) continue;
      const own = Object.entries(partsOf(record)).map(([part, s]) => [part, s * 1000]);
      const known = own.reduce((sum, [, part]) => sum + part, 0);
      const { prefill } = Object.fromEntries(own);
      beside.push(ms - prefill);
      for (const [part, value] of [...own, ["hops and wake-ups", ms - known]]) {
        parts.set(part, [...(parts.get(part) ?? []), value]);
      }
    }
    add(name, `beside_prefill_ms ${way}`, median(beside), "ms");
    for (const [part, values] of parts) add(name, `part_ms ${way}: ${part}`, median(values), "ms");
  }
}
