import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

/** What one metric is. Names carry their unit (`_seconds`, `_bytes`, `_total` only where TensorRT-LLM writes it). */
export interface MetricSpec<Label extends string = never> {
  readonly name: string;
  readonly help: string;
  readonly labels?: readonly Label[];
}

export interface GaugeSpec<Label extends string = never> extends MetricSpec<Label> {
  /** Called at each scrape, for values that something else keeps. */
  readonly read?: (gauge: Gauge<Label>) => void;
}

export interface HistogramSpec<Label extends string = never> extends MetricSpec<Label> {
  readonly buckets: readonly number[];
}

/** Seconds of a request's phases: 1 ms to 2 min. */
export const latencyBuckets: readonly number[] = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120,
];

/** Seconds of what takes microseconds when nothing is in its way: parts of a transfer, freeing blocks. 50 µs to 60 s. */
export const shortLatencyBuckets: readonly number[] = [
  0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60,
];

/** Bytes: 16 KiB to 16 GiB in steps of four. */
export const sizeBuckets: readonly number[] = Array.from({ length: 11 }, (_, step) => 16_384 * 4 ** step);

/** Seconds, as trtllm-serve cuts them. */
export const timeBuckets = {
  request: [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680],
  firstToken: [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
  ],
  outputToken: [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80],
} as const satisfies Readonly<Record<string, readonly number[]>>;

/** The metrics of one server; two servers in one process don't share any, except those of the process itself. */
export class Metrics {
  readonly #registry = new Registry();

  counter<Label extends string = never>(spec: MetricSpec<Label>): Counter<Label> {
    return new Counter({ ...identity(spec), registers: [this.#registry] });
  }

  gauge<Label extends string = never>(spec: GaugeSpec<Label>): Gauge<Label> {
    const { read } = spec;
    const gauge: Gauge<Label> = new Gauge({
      ...identity(spec),
      registers: [this.#registry],
      ...(read && { collect: () => read(gauge) }),
    });
    return gauge;
  }

  histogram<Label extends string = never>(spec: HistogramSpec<Label>): Histogram<Label> {
    return new Histogram({ ...identity(spec), buckets: [...spec.buckets], registers: [this.#registry] });
  }

  /** Body of `/metrics` in the Prometheus text format; send it with `metricsContentType`. */
  async text(): Promise<string> {
    return Registry.merge([processRegistry(), this.#registry]).metrics();
  }
}

export const metricsContentType: string = Registry.PROMETHEUS_CONTENT_TYPE;

const identity = <Label extends string>(spec: MetricSpec<Label>) => ({
  name: spec.name,
  help: spec.help,
  labelNames: spec.labels ?? [],
});

let ofProcess: Registry | undefined;

/** CPU, memory, event loop delay: collected once a process, since the collectors are never taken down. */
function processRegistry(): Registry {
  if (ofProcess === undefined) {
    ofProcess = new Registry();
    collectDefaultMetrics({ register: ofProcess });
  }
  return ofProcess;
}
