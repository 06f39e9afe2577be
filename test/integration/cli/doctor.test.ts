import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { main } from "../../../src/cli/main.ts";
import { capturedTerminal } from "../../unit/cli/captured_terminal.ts";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "kvt-doctor-"));
afterAll(() => rmSync(folder, { recursive: true }));

async function doctor(env: Readonly<Record<string, string>>) {
  const run = async (...more: string[]) => {
    const terminal = capturedTerminal({ PATH: process.env.PATH, KVT_SOCKET_DIR: join(folder, "sockets"), ...env });
    const code = await main(["doctor", ...more], terminal);
    return { code, out: terminal.out() };
  };
  const { code, out } = await run("--json");
  return { code, report: JSON.parse(out), text: (await run()).out };
}

describe("kvt doctor", () => {
  it("says in the loader's words why there is no GPU, what that means, and that nothing is broken by it", async () => {
    const { code, report, text } = await doctor({ KVT_CUDA_LIBRARY: "/absent/libcuda.so.1" });
    expect([code, report.problems]).toEqual([0, []]);
    expect(report.cuda).toMatchObject({
      library: null,
      devices: [],
      why: expect.stringMatching(/no CUDA driver: \/absent\/libcuda\.so\.1: cannot open shared object file/),
    });
    expect(text).toMatch(/no GPU: there is no CUDA driver: .*\n +KV pools lie in memory of the host; shared_memory/);
    expect(text).toMatch(/· cuda_peer +there is no CUDA driver/);
    expect(text).toMatch(/✓ nothing is broken\n$/);
  }, 60_000);

  it("names each GPU, the form of the kernels that runs there and the path that it gives, here of a driver that has a made-up one", async () => {
    const library = join(folder, "libcuda_fake.so");
    const source = join(root, "native/test/fakes/cuda_fake.cc");
    execFileSync("c++", ["-std=c++20", "-O1", "-shared", "-fPIC", `-I${join(root, "native")}`, source, "-o", library]);
    const { code, report, text } = await doctor({ KVT_CUDA_LIBRARY: library });
    expect([code, report.problems]).toEqual([0, []]);
    expect(report.cuda).toMatchObject({ library, version: "12.0", why: null });
    expect(report.cuda.devices).toMatchObject([
      {
        device: 0,
        name: "Fake GPU",
        uuid: expect.stringMatching(/^GPU-0707/),
        kernels: "cubin sm_90",
        reaches: [],
        why: null,
      },
    ]);
    expect(text).toMatch(
      /✓ cuda:0 Fake GPU, .*compute capability 9\.0, GPU-0707.* at 0000:01:00\.0\n +kernels: cubin sm_90\n/,
    );
    expect(text).toMatch(/✓ cuda_peer +between pools on cuda:0/);
  }, 60_000);

  it("moves bytes through shared memory here and says how fast, and exits with 1 where the socket directory can't be used", async () => {
    const { report, text } = await doctor({});
    const [mapped] = report.paths;
    expect(mapped).toMatchObject({ name: "shared_memory", usable: true });
    expect(mapped.measured.map(({ pieceBytes }: { pieceBytes: number }) => pieceBytes)).toEqual([
      4096,
      65_536,
      1 << 20,
    ]);
    expect(text).toMatch(/ {6}64 KiB +\d+\.\d\d GB\/s/);
    const broken = await doctor({ KVT_SOCKET_DIR: "/dev/null" });
    expect(broken.code).toBe(1);
    expect(broken.report.problems).toEqual([
      expect.stringMatching(/socket directory \/dev\/null can't be used: it is no directory; set KVT_SOCKET_DIR/),
    ]);
    expect(broken.report.paths[0]).toMatchObject({ usable: false, why: expect.stringMatching(/socket directory/) });
    expect(broken.text).toMatch(/· shared_memory .*\n(.*\n)+problems\n {2}✗ the socket directory/);
  }, 60_000);
});
