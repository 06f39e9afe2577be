import { hostname } from "node:os";
import { z } from "zod";
import { KvError } from "../errors.ts";
import { Layout } from "../kv/layout.ts";
import { nativeLayoutOf, PlacementError } from "../kv/placement.ts";
import { type Parallel, rankOf } from "../kv/ranks.ts";
import type { NativeLayout, NativeRegion } from "../native/plane_binding.ts";
import { type ForcedPath, forcedPaths, type NixlBackend } from "../nixl/choice.ts";
import type { OpenOptions } from "./api.ts";
import { defaultSocketDir } from "./socket_directory.ts";
import { type VerifyMode, verifyModes } from "./verification.ts";

const DEFAULT_LEASE_MS = 10_000;
const DEFAULT_TRANSFER_MS = 60_000;
export const DEFAULT_SENDER_FUTURE_MS = 1_000;
/** In all, from one peer, and by one peer. */
const DEFAULT_PULLS = 8;
const DEFAULT_OFFERS = 1024;
const DEFAULT_SLOTS = 2;
/** As many fill an NVLink (docs/gpu.md); the others keep computing. */
const DEFAULT_MULTIPROCESSORS = 64;

const millis = z.number().positive().max(8_640_000_000);
const index = z.int().min(0).max(65535);

const order = z.enum(["HND", "NHD"]).optional();
const offset = z
  .number()
  .int()
  .min(0)
  .max(2 ** 47);
const placement = z.strictObject({
  bases: z.array(z.union([offset, z.strictObject({ region: z.int().min(0), offset })])).max(4096),
  strides: z.strictObject({
    block: offset,
    plane: offset.optional(),
    head: offset.optional(),
    token: offset.optional(),
  }),
});

/** "cuda" is "cuda:0". */
const PoolMemory = z.union([
  z.literal("host"),
  z
    .string()
    .regex(/^cuda(:\d{1,4})?$/)
    .transform((name) => ({ device: Number(name.slice("cuda:".length)) })),
]);

const Options = z.strictObject({
  config: z
    .strictObject({
      backend: z.enum(["DEFAULT", "UCX", "NIXL"]).nullable().optional(),
      max_tokens_in_buffer: z.int().positive().nullable().optional(),
      kv_transfer_timeout_ms: millis.nullable().optional(),
      kv_transfer_sender_future_timeout_ms: millis.nullable().optional(),
    })
    .optional(),
  layout: Layout.refine(({ attention, kvHeads }) => attention !== "mla" || kvHeads === 1, {
    path: ["kvHeads"],
    message: 'must be 1 for attention "mla": all heads read one latent vector, and ranks hold it whole',
  }),
  parallel: z
    .strictObject({
      tpRank: index,
      tpSize: index.min(1),
      ppRank: index,
      ppSize: index.min(1),
      dpRank: index.optional(),
      pipeline: z.array(z.int().min(1).max(4096)).max(1024).optional(),
      cpSize: z
        .literal(1, "must be 1: context parallelism, which spreads the tokens of a sequence, is not supported")
        .optional(),
    })
    .refine(({ tpRank, tpSize, ppRank, ppSize }) => tpRank < tpSize && ppRank < ppSize, "a rank must be below its size")
    .optional(),
  pool: z.union(
    [
      z.strictObject({ memory: PoolMemory, blocks: z.int().min(1).max(0xffffffff), order }),
      z.strictObject({
        order,
        placement: z.record(z.string(), placement).optional(),
        adopt: z
          .array(z.strictObject({ fd: z.int().min(0), offset: z.int().min(0), bytes: z.int().min(1) }))
          .min(1)
          .max(1024),
        blocks: z.int().min(1).max(0xffffffff),
      }),
    ],
    'it must be { memory: "host" or "cuda:0", blocks } or { adopt: [{ fd, offset, bytes }], blocks }',
  ),
  listen: z
    .strictObject({
      host: z.string().min(1),
      port: z.int().min(0).max(65535),
      tls: z.strictObject({ cert: z.string(), key: z.string(), ca: z.string().optional() }).optional(),
    })
    .optional(),
  lease: z
    .strictObject({ leaseMs: millis.min(50).optional(), stallMs: millis.optional(), strict: z.boolean().optional() })
    .optional(),
  maxOffers: z.int().min(1).max(65536).optional(),
  maxConcurrentPulls: z.int().min(1).max(4096).optional(),
  maxConcurrentPullsPerPeer: z.int().min(1).max(4096).optional(),
  maxConcurrentSends: z.int().min(1).max(4096).optional(),
  stagingSlots: z.int().min(1).max(1024).optional(),
  verify: z.enum(verifyModes).optional(),
  path: z.enum(forcedPaths).nullable().optional(),
  sameHost: z.boolean().optional(),
  instance: z.string().min(1).max(256).optional(),
  authToken: z.string().min(1).optional(),
  socketDir: z.string().startsWith("/").optional(),
});

/** What the schema of a pool would only call invalid, although the caller is right to expect it one day. */
function refuseOtherMemory(pool: unknown): void {
  if (typeof pool !== "object" || pool === null) return;
  const regions: readonly unknown[] = "adopt" in pool && Array.isArray(pool.adopt) ? pool.adopt : [];
  if (regions.some((region) => typeof region === "object" && region !== null && "address" in region)) {
    throw new KvError("NOT_PROVIDED", {
      what: "a pool of plain pointers",
      why: "no other process can map them",
      remedy: "allocate it in a memfd (memfd_create with MFD_ALLOW_SEALING) and give { fd, offset, bytes }",
    });
  }
}

/** Every option checked and with its default. */
export interface ResolvedOptions {
  readonly layout: Layout;
  readonly parallel: Parallel;
  readonly rank: number;
  /** How this rank's pool lies in memory. */
  readonly native: NativeLayout;
  readonly blocks: number;
  readonly adopt: readonly NativeRegion[] | undefined;
  /** The pool lies on a GPU. */
  readonly gpu: { readonly device: number; readonly multiprocessors: number } | undefined;
  readonly listen: {
    readonly host: string;
    readonly port: number;
    readonly tls: { readonly cert: string; readonly key: string; readonly ca?: string | undefined } | undefined;
  };
  readonly leaseMs: number;
  readonly stallMs: number;
  readonly strict: boolean;
  readonly verify: VerifyMode;
  /** kv_transfer_timeout_ms; null: no bound. */
  readonly transferMs: number | null;
  /** Limit of queue waits and of an offer that nobody fetches. */
  readonly queueMs: number;
  readonly senderFutureMs: number;
  readonly maxOffers: number;
  readonly maxConcurrentPulls: number;
  readonly maxConcurrentPullsPerPeer: number;
  readonly maxConcurrentSends: number;
  /** A direction. */
  readonly stagingSlots: number;
  /** max_tokens_in_buffer: of one slot. */
  readonly tokensInBuffer: number | null;
  readonly instance: string;
  readonly authToken: string | undefined;
  readonly socketDir: string;
  readonly backend: NixlBackend;
  readonly path: ForcedPath | null;
  readonly sameHost: boolean;
  /** KVT_CHECK=1: blocks are filled while they are free, and looked at when they are taken. */
  readonly check: boolean;
}

type Pool = z.output<typeof Options>["pool"];

function placed(layout: Layout, parallel: Parallel, pool: Pool): NativeLayout {
  try {
    return nativeLayoutOf(layout, parallel, pool);
  } catch (error) {
    if (!(error instanceof PlacementError)) throw error;
    throw new KvError("INVALID_ARGUMENT", { what: `options.pool.placement${error.field}`, why: error.message });
  }
}

function gpuOf(pool: Pool, { KVT_CUDA_SMS: limit = "" }: NodeJS.ProcessEnv): ResolvedOptions["gpu"] {
  if (!("memory" in pool) || pool.memory === "host") return undefined;
  const multiprocessors = limit === "" ? DEFAULT_MULTIPROCESSORS : Number(limit);
  if (Number.isInteger(multiprocessors) && multiprocessors >= 1 && multiprocessors <= 65536) {
    return { device: pool.memory.device, multiprocessors };
  }
  throw new KvError("INVALID_ARGUMENT", {
    what: `KVT_CUDA_SMS=${limit}`,
    why: "it must be an integer from 1 to 65536",
  });
}

/** KVT_PATH, for programs that open a transceiver without saying. */
function pathOf({ KVT_PATH: path }: NodeJS.ProcessEnv): ForcedPath | null {
  if (!path) return null;
  const known = forcedPaths.find((name) => name === path);
  if (known) return known;
  throw new KvError("INVALID_ARGUMENT", { what: `KVT_PATH=${path}`, why: `there are ${forcedPaths.join(", ")}` });
}

/** @throws KvError INVALID_ARGUMENT, which names the option; NOT_PROVIDED for memory that is not of the host or not shared */
export function resolveOptions(options: OpenOptions, environment: NodeJS.ProcessEnv = process.env): ResolvedOptions {
  refuseOtherMemory(options?.pool);
  const parsed = Options.safeParse(options);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const what = issue === undefined || issue.path.length === 0 ? "options" : `options.${issue.path.join(".")}`;
    throw new KvError("INVALID_ARGUMENT", { what, why: issue?.message ?? "not valid" });
  }
  const { layout, pool, lease, config, listen, ...rest } = parsed.data;
  const parallel = rest.parallel ?? { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 };
  const timeout = config?.kv_transfer_timeout_ms;
  const leaseMs = lease?.leaseMs ?? DEFAULT_LEASE_MS;
  return {
    layout,
    parallel,
    rank: rankOf(parallel),
    native: placed(layout, parallel, pool),
    blocks: pool.blocks,
    adopt: "adopt" in pool ? pool.adopt : undefined,
    gpu: gpuOf(pool, environment),
    listen: { host: listen?.host ?? "127.0.0.1", port: listen?.port ?? 0, tls: listen?.tls },
    leaseMs,
    stallMs: lease?.stallMs ?? 2 * leaseMs,
    strict: lease?.strict ?? false,
    verify: rest.verify ?? "sampled",
    transferMs: timeout === undefined ? DEFAULT_TRANSFER_MS : timeout,
    queueMs: timeout ?? DEFAULT_TRANSFER_MS,
    senderFutureMs: config?.kv_transfer_sender_future_timeout_ms ?? DEFAULT_SENDER_FUTURE_MS,
    maxOffers: rest.maxOffers ?? DEFAULT_OFFERS,
    maxConcurrentPulls: rest.maxConcurrentPulls ?? DEFAULT_PULLS,
    maxConcurrentPullsPerPeer: rest.maxConcurrentPullsPerPeer ?? DEFAULT_PULLS,
    maxConcurrentSends: rest.maxConcurrentSends ?? DEFAULT_PULLS,
    stagingSlots: rest.stagingSlots ?? DEFAULT_SLOTS,
    tokensInBuffer: config?.max_tokens_in_buffer ?? null,
    instance: rest.instance ?? `${hostname()}:${process.pid}`,
    authToken: rest.authToken ?? (environment.KVT_AUTH_TOKEN || undefined),
    socketDir: rest.socketDir ?? defaultSocketDir(environment),
    backend: config?.backend ?? "DEFAULT",
    path: rest.path === undefined ? pathOf(environment) : rest.path,
    sameHost: rest.sameHost ?? true,
    check: environment.KVT_CHECK === "1",
  };
}
