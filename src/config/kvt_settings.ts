import { readFileSync } from "node:fs";
import type { Chosen } from "./chosen.ts";
import type { Environment } from "./environment.ts";
import { readSource, warnAboutUnits } from "./file_rules.ts";
import { FileSection } from "./file_section.ts";
import { KvtFile, type PathName, type VerifyMode } from "./kvt_file.ts";
import type { Problems } from "./problems.ts";
import { checkSchema } from "./schema_check.ts";
import type { WorkerSettings } from "./settings.ts";

export type KvtSettings = Pick<WorkerSettings, "control" | "lease" | "transfer">;

const DEFAULT_LEASE_MS = 10_000;
/** As many as may wait in the queue. */
const DEFAULT_OFFERS = 1024;
/** Transfers at the same time (S83). */
const DEFAULT_TRANSFERS = 8;
const DEFAULT_SLOTS = 2;

/** Reads `--kvt_config` (S5); without a file everything has its default. */
export function kvtSettings(
  file: string | undefined,
  environment: Environment,
  chosen: Chosen,
  problems: Problems,
): KvtSettings {
  const source = file === undefined ? undefined : readSource(file, problems);
  if (source) warnAboutUnits(source, problems);
  const parsed = source ? checkSchema(KvtFile, source, problems) : undefined;
  const root = new FileSection<KvtFile>(parsed, source, []);
  const lease = root.section("lease");
  const leaseMs = chosen.pick<number>("lease.leaseMs", DEFAULT_LEASE_MS, { file: lease.value("leaseMs") });
  const transfer = root.section("transfer");
  const path = forcedPath(transfer, environment, chosen, problems);
  const sameHost = chosen.pick<boolean>("transfer.same_host", true, { file: transfer.value("same_host") });
  if (root.has("upstreams")) {
    root.report(problems, "not_built", "upstreams", "workers of other engines are not built yet; remove the key");
  }
  return {
    control: controlSettings(root.section("control"), chosen, problems),
    lease: {
      leaseMs,
      // Two leases without progress end a transfer (design.md section 5).
      stallMs: chosen.pick<number>("lease.stallMs", 2 * leaseMs, { file: lease.value("stallMs") }),
      strict: chosen.pick<boolean>("lease.strict", false, { file: lease.value("strict") }),
    },
    transfer: { path, sameHost, ...transferSettings(transfer, environment, chosen) },
  };
}

function transferSettings(
  section: Transfer,
  environment: Environment,
  chosen: Chosen,
): Omit<KvtSettings["transfer"], "path" | "sameHost"> {
  const { receives: env, sends, layerwise } = environment;
  return {
    layerwise: chosen.pick<boolean>("transfer.layerwise", false, { env: layerwise, file: section.value("layerwise") }),
    verify: chosen.pick<VerifyMode>("transfer.verify", "sampled", { file: section.value("verify") }),
    maxOffers: chosen.pick<number>("transfer.max_offers", DEFAULT_OFFERS, { file: section.value("max_offers") }),
    // S83: what its count of buffers means where there are buffers.
    stagingSlots: chosen.pick<number>("transfer.staging_slots", DEFAULT_SLOTS, {
      env,
      file: section.value("staging_slots"),
    }),
    maxReceives: chosen.pick<number>("transfer.max_receives", DEFAULT_TRANSFERS, {
      env,
      file: section.value("max_receives"),
    }),
    maxReceivesPerPeer: chosen.pick<number>("transfer.max_receives_per_peer", DEFAULT_TRANSFERS, {
      file: section.value("max_receives_per_peer"),
    }),
    maxSendsPerPeer: chosen.pick<number>("transfer.max_sends_per_peer", DEFAULT_TRANSFERS, {
      env: sends,
      file: section.value("max_sends_per_peer"),
    }),
  };
}

function controlSettings(
  section: FileSection<NonNullable<KvtFile["control"]>>,
  chosen: Chosen,
  problems: Problems,
): KvtSettings["control"] {
  const tls = section.section("tls");
  const read = (key: "cert" | "key" | "ca"): string | null => {
    const path = tls.value(key);
    if (path === undefined) return null;
    chosen.pick<string | null>(tls.name(key), null, { file: path });
    try {
      return readFileSync(path.value, "utf8");
    } catch (thrown) {
      const why = (thrown as NodeJS.ErrnoException).code ?? String(thrown);
      tls.report(problems, "error", key, `${path.value} can't be read: ${why}`);
      return null;
    }
  };
  const cert = read("cert");
  const key = read("key");
  const ca = read("ca");
  return {
    host: chosen.pick<string>("control.host", "127.0.0.1", { file: section.value("host") }),
    port: chosen.pick<number>("control.port", 0, { file: section.value("port") }),
    tls: cert === null || key === null ? null : { cert, key, ca },
  };
}

type Transfer = FileSection<NonNullable<KvtFile["transfer"]>>;

function forcedPath(section: Transfer, environment: Environment, chosen: Chosen, problems: Problems) {
  const path = chosen.pick<PathName | null>("transfer.path", null, {
    env: environment.path,
    file: section.value("path"),
  });
  if (path !== "cuda_peer") return path;
  const text = `the path ${path} is not built yet; shared_memory, nixl_direct and nixl_staged are`;
  if (section.has("path")) section.report(problems, "not_built", "path", text);
  else problems.add("not_built", "KVT_PATH", text);
  return null;
}
