import { z } from "zod";

export const PathName = z.enum(["shared_memory", "cuda_peer", "nixl_direct", "nixl_staged"]);
export type PathName = z.infer<typeof PathName>;

export const VerifyMode = z.enum(["off", "sampled", "full"]);
export type VerifyMode = z.infer<typeof VerifyMode>;

const path = z.string().min(1);

/** Our own options (`--kvt_config`, S5): they never enter the seed's files, which a real trtllm-serve must be able to read. */
export const KvtFile = z.strictObject({
  /** Control endpoint of the transceiver. */
  control: z
    .strictObject({
      host: z.string().min(1).nullish(),
      port: z.int().min(0).max(65535).nullish(),
      /** PEM files. */
      tls: z.strictObject({ cert: path, key: path, ca: path.nullish() }).nullish(),
    })
    .nullish(),
  lease: z
    .strictObject({
      leaseMs: z.int().min(1).nullish(),
      stallMs: z.int().min(1).nullish(),
      strict: z.boolean().nullish(),
    })
    .nullish(),
  transfer: z
    .strictObject({
      path: PathName.nullish(),
      same_host: z.boolean().nullish(),
      layerwise: z.boolean().nullish(),
      verify: VerifyMode.nullish(),
      max_offers: z.int().min(1).max(65536).nullish(),
      staging_slots: z.int().min(1).max(1024).nullish(),
      max_receives: z.int().min(1).max(4096).nullish(),
      max_receives_per_peer: z.int().min(1).max(4096).nullish(),
      max_sends_per_peer: z.int().min(1).max(4096).nullish(),
    })
    .nullish(),
  /** Engine family of single workers, by `host:port` (S53). */
  upstreams: z.record(z.string(), z.strictObject({ engine: z.enum(["kvt", "trtllm", "vllm", "sglang"]) })).nullish(),
});
export type KvtFile = z.infer<typeof KvtFile>;
