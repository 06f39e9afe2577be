import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { buildKvt, startKvt } from "../integration/cli/kvt_process.ts";

/** A package index that takes connections and never answers. */
async function silentIndex(): Promise<{
  readonly server: Server;
  readonly asked: Promise<unknown>;
  readonly url: string;
}> {
  const server = createServer((socket) => socket.on("error", () => {}));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    server,
    asked: once(server, "connection"),
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
  };
}

describe("kvt nixl install", () => {
  let folder = "";
  let data = "";
  beforeAll(buildKvt, 60_000);
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "kvt-install-"));
    data = join(folder, "data/kv-transceiver/nixl");
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  /** Of what the user has: nothing. */
  const install = (index: string, ...more: string[]) =>
    startKvt(["nixl", "install", ...more], {
      ...{ HOME: "", XDG_DATA_HOME: join(folder, "data"), PIP_CONFIG_FILE: "/dev/null" },
      ...{ PIP_INDEX_URL: index, PIP_EXTRA_INDEX_URL: "", PIP_FIND_LINKS: "", PIP_NO_INDEX: "" },
    });
  const drafts = () => readdirSync(data).filter((name) => name.startsWith(".bring-"));

  it("says in one sentence that the index is not reached, and what was installed stays", async () => {
    mkdirSync(join(data, "1.5.1"), { recursive: true });
    const run = install("http://127.0.0.1:9/simple");
    expect(await run.ended).toBe(1);
    expect(run.output()).toMatch(
      /kvt: NIXL 1\.5\.1 was not installed: pip can't reach its package index for nixl-cu13==1\.5\.1: .*Connection refused/,
    );
    expect(run.output()).toMatch(/check that python3 has pip and reaches PyPI/);
    expect(readdirSync(data)).toEqual(["1.5.1"]);
  }, 60_000);

  it("leaves nothing behind when it is interrupted", async () => {
    const { server, asked, url } = await silentIndex();
    const run = install(url);
    await asked;
    expect(drafts()).toHaveLength(1);
    run.child.kill("SIGINT");
    expect(await run.ended).toBe(1);
    expect(run.output()).toMatch(/NIXL 1\.5\.1 was not installed: it was interrupted/);
    expect(readdirSync(data)).toEqual([]);
    server.close();
  }, 60_000);

  it("sweeps away what a killed one left, not what a running one works in, and never takes either for NIXL", async () => {
    const { server, asked, url } = await silentIndex();
    const killed = install(url);
    await asked;
    const [left = ""] = drafts();
    killed.child.kill("SIGKILL");
    await killed.ended;
    server.close();
    expect(drafts()).toEqual([left]);
    // Half of a wheel.
    mkdirSync(join(data, left, "home/.nixl_cu13.mesonpy.libs"), { recursive: true });
    writeFileSync(join(data, left, "home/.nixl_cu13.mesonpy.libs/libnixl_capi.so"), "half");
    const busy = await silentIndex();
    const running = install(busy.url);
    await busy.asked;
    expect(existsSync(join(data, left))).toBe(false);
    const offline = install("http://127.0.0.1:9/simple");
    expect(await offline.ended).toBe(1);
    expect(drafts()).toHaveLength(1);
    running.child.kill("SIGTERM");
    expect(await running.ended).toBe(1);
    expect(drafts()).toEqual([]);
    busy.server.close();
  }, 60_000);

  it("names the file that the system refuses, where its directory can't be made", async () => {
    symlinkSync("/dev/null", join(folder, "data"));
    const run = install("http://127.0.0.1:9/simple");
    expect(await run.ended).toBe(1);
    expect(run.output()).toMatch(/NIXL 1\.5\.1 was not installed: (ENOTDIR|EEXIST|ENOENT).*\/data/);
  }, 30_000);
});
