import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { requestId } from "../../../src/ids.ts";
import type { TransferReport } from "../../../src/transceiver/api.ts";
import type { DialTarget } from "../../../src/transceiver/dial.ts";
import { fastestNetwork, isThisMachine, type LinkRate, SlowPaths } from "../../../src/transceiver/slow_path.ts";

const MiB = 2 ** 20;

const reported = (fields: Partial<TransferReport>): TransferReport => ({
  requestId: requestId(1),
  bytes: 64 * MiB,
  blocks: 64,
  tokens: 2048,
  ms: 1,
  queueMs: 0,
  connectMs: 0,
  waitMs: 0,
  movingMs: 1,
  verifyMs: 0,
  gbPerS: 1,
  path: "nixl_direct",
  chunks: 1,
  runs: 1,
  pieces: 64,
  attempts: 1,
  ...fields,
});

const target = (name: string, host: string): DialTarget => ({
  name,
  epoch: "0123456789abcdef" as DialTarget["epoch"],
  tcp: `tcp://${host}:7000`,
  unix: null,
});

const rdma: LinkRate = { gbPerS: 50, what: "what mlx5_0 (RDMA) moves", kind: "rdma" };

function watched(network: LinkRate | null, env: Record<string, string> = {}) {
  const warnings: string[] = [];
  const slow = new SlowPaths({
    network: () => network,
    isHere: isThisMachine,
    warn: (_fields, text) => warnings.push(text),
    env,
  });
  return { slow, warnings };
}

describe("a transfer below 5 % of what its link is known to move", () => {
  it("raises one warning for each peer and path", () => {
    const { slow, warnings } = watched(rdma);
    for (const name of ["ctx-1", "ctx-1", "ctx-2"]) slow.ended(target(name, "10.255.0.9"), reported({ gbPerS: 1.2 }));
    expect(warnings).toHaveLength(2);
    expect(warnings[0]).toMatch(
      /^a transfer from ctx-1 moved 1\.20 GB\/s over nixl_direct, 2\.4 % of what mlx5_0 \(RDMA\) moves: /,
    );
    slow.ended(target("ctx-1", "10.255.0.9"), reported({ gbPerS: 1.2, path: "nixl_staged" }));
    expect(warnings).toHaveLength(3);
  });

  it.each([
    ["TCP may have taken the place of RDMA", "10.255.0.9", {}, {}, /UCX may have taken TCP in place of RDMA/],
    ["UCX may use TCP only", "10.255.0.9", {}, { UCX_TLS: "tcp" }, /UCX_TLS=tcp leaves it TCP only/],
    ["NIXL on one machine", "127.0.0.1", { gbPerS: 0.3 }, {}, /NIXL is taken between two processes of one machine/],
    [
      "tiny descriptors",
      "10.255.0.9",
      { wire: { posts: 64, postMs: 1, transferMs: 2, descriptors: 16_384, bytes: 64 * MiB } },
      {},
      /its 16384 NIXL descriptors have 4096 bytes each/,
    ],
    [
      "small copies",
      "127.0.0.1",
      { gbPerS: 0.2, path: "shared_memory", pieces: 65_536 },
      {},
      /its 65536 copies have 1024 bytes each/,
    ],
    ["nothing of these", "127.0.0.1", { gbPerS: 0.2, path: "shared_memory" }, {}, /this machine is short of CPU/],
  ] as const)("says why: %s", (_why, host, fields, env, words) => {
    const { slow, warnings } = watched(rdma, env);
    slow.ended(target("peer", host), reported(fields));
    expect(warnings).toEqual([expect.stringMatching(words)]);
  });

  it.each([
    ["is fast enough", rdma, { gbPerS: 2.5 }],
    ["is too short to tell", rdma, { bytes: 4 * MiB, gbPerS: 0.1 }],
    ["goes over a link that nothing is known of", null, { gbPerS: 0.1 }],
    ["moved nothing", rdma, { bytes: 0, gbPerS: 0 }],
  ])("is not one that %s", (_what, network, fields) => {
    const { slow, warnings } = watched(network);
    slow.ended(target("peer", "10.255.0.9"), reported(fields));
    expect(warnings).toEqual([]);
  });
});

describe("what a network is known to move", () => {
  const sys = mkdtempSync(join(tmpdir(), "kvt-sys-"));
  const put = (path: string, text: string): void => {
    const file = join(sys, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, `${text}\n`);
  };
  beforeAll(() => {
    put("eth/net/lo/operstate", "up");
    put("eth/net/lo/speed", "999999");
    put("eth/net/eth0/operstate", "up");
    put("eth/net/eth0/speed", "10000");
    put("eth/net/eth1/operstate", "down");
    put("eth/net/eth1/speed", "100000");
    put("eth/net/veth/operstate", "up");
    put("eth/net/veth/speed", "-1");
    put("ib/net/eth0/operstate", "up");
    put("ib/net/eth0/speed", "10000");
    put("ib/infiniband/mlx5_0/ports/1/state", "4: ACTIVE");
    put("ib/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)");
    put("ib/infiniband/mlx5_1/ports/1/state", "1: DOWN");
    put("ib/infiniband/mlx5_1/ports/1/rate", "800 Gb/sec (4X XDR)");
  });
  afterAll(() => rmSync(sys, { recursive: true }));

  it("is the fastest RDMA port that is active, else the fastest interface that is up, else unknown", () => {
    expect(fastestNetwork(join(sys, "ib"))).toEqual({ gbPerS: 50, what: "what mlx5_0 (RDMA) moves", kind: "rdma" });
    expect(fastestNetwork(join(sys, "eth"))).toEqual({ gbPerS: 1.25, what: "what eth0 moves", kind: "network" });
    expect(fastestNetwork(join(sys, "none"))).toBeNull();
  });
});
