import type { Candidate } from "./chosen.ts";
import { type ClusterSection, MetadataServerFile } from "./cluster_section.ts";
import { readSource, renameOldNames, warnAboutUnits } from "./file_rules.ts";
import type { FileSection } from "./file_section.ts";
import type { Problems } from "./problems.ts";
import { checkSchema } from "./schema_check.ts";

const NOT_BUILT = "is not built yet; list the workers' urls in the router file instead";
const DEFAULT_HEARTBEAT_SEC = 5;
const DEFAULT_INACTIVE_SEC = 10;

/** `disagg_cluster` of either file: checked, so that mistakes show now, then refused (S54-S61). */
export function refuseCluster(cluster: FileSection<ClusterSection>, problems: Problems): void {
  const uri = cluster.value("cluster_uri")?.value;
  if (uri === undefined) return;
  const endpoints = uri.split(",");
  const known =
    endpoints.every((endpoint) => /^etcd:\/\/[^/\s]+$/.test(endpoint)) || /^https?:\/\/[^/\s]+\/?$/.test(uri);
  if (!known) {
    const text = `${uri}: write http://host:port, https://host:port or etcd://host:port (several separated by commas)`;
    cluster.report(problems, "error", "cluster_uri", text);
  }
  const heartbeat = cluster.value("heartbeat_interval_sec")?.value ?? DEFAULT_HEARTBEAT_SEC;
  const inactive = cluster.value("inactive_timeout_sec")?.value ?? DEFAULT_INACTIVE_SEC;
  const key = cluster.has("inactive_timeout_sec") ? "inactive_timeout_sec" : "heartbeat_interval_sec";
  if (inactive <= heartbeat) {
    const text = `inactive_timeout_sec (${inactive}) must be longer than heartbeat_interval_sec (${heartbeat})`;
    cluster.report(problems, "error", key, text);
  } else if (inactive < 2 * heartbeat) {
    const text = `inactive_timeout_sec (${inactive}) is below two heartbeats (${2 * heartbeat}): one late heartbeat evicts`;
    cluster.report(problems, "warning", key, text);
  }
  cluster.report(problems, "not_built", "cluster_uri", `service discovery ${NOT_BUILT}`);
}

/** `--metadata_server_config_file`: the file is read and checked, then refused (S63-S67). */
export function refuseMetadataServer(
  flag: Candidate<string> | undefined,
  withCluster: boolean,
  problems: Problems,
): void {
  if (!flag) return;
  if (withCluster) {
    problems.add("error", flag.origin, "can't be used together with disagg_cluster: choose one");
    return;
  }
  const source = readSource(flag.value, problems);
  if (source) {
    renameOldNames(source, problems);
    warnAboutUnits(source, problems);
    checkSchema(MetadataServerFile, source, problems);
  }
  problems.add("not_built", flag.origin, `the metadata server ${NOT_BUILT}`);
}
