import type { TransceiverHealth } from "./api.ts";

const ORDER = ["ok", "degraded", "unhealthy"] as const;

/** As the worst of several; reasons say whose they are. One alone is itself. */
export function joinHealth(all: readonly (readonly [name: string, health: TransceiverHealth])[]): TransceiverHealth {
  const worst = Math.max(...all.map(([, { status }]) => ORDER.indexOf(status)));
  return {
    status: ORDER[worst] ?? "unhealthy",
    reasons: all.flatMap(([name, { reasons }]) =>
      reasons.map((reason) => (all.length === 1 ? reason : `${name}: ${reason}`)),
    ),
  };
}
