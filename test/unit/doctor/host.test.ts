import { describe, expect, it } from "vitest";
import { adviceOn, type HostFacts } from "../../../src/doctor/host.ts";

const well: Omit<HostFacts, "advice"> = {
  node: "v20.19.0",
  kernel: "6.8.0",
  arch: "x64",
  cpus: 8,
  memoryBytes: 2 ** 35,
  memoryLimitBytes: null,
  addon: { file: "/kvt/kv_transceiver.node", vectorLevel: "avx2" },
  hugePages: { reserved: 512, free: 512, bytes: 2 ** 21, shmem: "never" },
  memlock: "unlimited",
  devShmBytes: 2 ** 30,
  socketDirectory: { path: "/run/kvt", why: null },
  namespaces: {},
  ptraceScope: "0",
  networks: [{ name: "mlx5_0", kind: "rdma", up: true, gbPerS: 50 }],
};

describe("advice on a host", () => {
  it("is none where nothing slows transfers down", () => {
    expect(adviceOn(well)).toEqual([]);
    // Memory may be locked as little as it likes where no RDMA device registers it.
    expect(adviceOn({ ...well, networks: [], memlock: "65536" })).toEqual([]);
    const transparent = { ...well.hugePages, reserved: 0, free: 0, shmem: "advise" };
    expect(adviceOn({ ...well, hugePages: transparent })).toEqual([]);
  });

  it.each([
    [{ hugePages: { ...well.hugePages, reserved: 0, free: 0 } }, /none are reserved.*sysctl vm\.nr_hugepages=N/],
    [{ hugePages: { ...well.hugePages, free: 0 } }, /all 512 are taken.*sysctl vm\.nr_hugepages=N/],
    [{ memlock: "65536" }, /mlx5_0 can't register pools: a process may lock 65536 bytes only.*ulimit -l unlimited/],
    [{ ptraceScope: "1" }, /ptrace_scope is 1, and `sysctl kernel\.yama\.ptrace_scope=0`/],
    [{ devShmBytes: null }, /there is no \/dev\/shm.*--shm-size/],
    [{ devShmBytes: 1 << 20 }, /\/dev\/shm has 1048576 bytes free.*--shm-size/],
  ])("names what %j costs and what to do", (facts, words) => {
    expect(adviceOn({ ...well, ...facts })).toEqual([expect.stringMatching(words)]);
  });
});
