import { z } from "zod";

const seconds = z.number().gt(0);

/** `disagg_cluster` of either file (S54-S61). */
export const ClusterSection = z.strictObject({
  cluster_uri: z.string().min(1),
  cluster_name: z.string().nullish(),
  minimal_instances: z
    .strictObject({ context_servers: z.int().min(0).nullish(), generation_servers: z.int().min(0).nullish() })
    .nullish(),
  heartbeat_interval_sec: seconds.nullish(),
  inactive_timeout_sec: seconds.nullish(),
});
export type ClusterSection = z.infer<typeof ClusterSection>;

/** The metadata-server file (`--metadata_server_config_file`, S63-S66). */
export const MetadataServerFile = z.strictObject({
  server_type: z.enum(["etcd"]).nullish(),
  hostname: z.string().min(1).nullish(),
  port: z.int().min(1).max(65535).nullish(),
  health_check_timeout: seconds.nullish(),
  refresh_interval: seconds.nullish(),
});
export type MetadataServerFile = z.infer<typeof MetadataServerFile>;
