import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { errors } from "../../src/errors.ts";
import { type Peer, Peers } from "../integration/transceiver/peer_process.ts";
import { Namespaces } from "./namespaces.ts";
import { bringNixl, setEnvironment } from "./nixl_wheel.ts";

const opened = await Namespaces.open();
const namespaces = typeof opened === "string" ? undefined : opened;
const forbidden = namespaces === undefined ? ` (skipped: ${opened})` : "";
const brought = bringNixl("1.5.1");
const ABSENT = "/absent/libnixl_capi.so";

describe.skipIf(namespaces === undefined)(`without NIXL${forbidden}`, () => {
  // A directory of sockets each, as two hosts have.
  const here = new Peers();
  const there = new Peers();
  let restore: () => void;
  let next = 1;
  beforeAll(() => {
    restore = setEnvironment({ KVT_NIXL_LIBRARY: ABSENT });
  });
  afterAll(async () => {
    restore();
    await Promise.all([here, there].map((peers) => peers[Symbol.asyncDispose]()));
    await namespaces?.[Symbol.asyncDispose]();
  });

  const open = (peers: Peers, place: "context" | "generation"): Promise<Peer> =>
    peers.open({ listen: { host: namespaces?.address(place) ?? "", port: 0 } }, true, namespaces?.entry(place));

  async function moved(from: Peer, to: Peer) {
    const id = next++;
    const { state } = await from.send({ request: id, tokens: 64 });
    await to.receive({ id, state, tokens: 64 });
    return to.received(id);
  }

  it("KV moves between processes of one host, also of two networks, after one warning that names what is missing", async () => {
    const [first, second, elsewhere] = await Promise.all([
      open(here, "context"),
      open(here, "context"),
      open(here, "generation"),
    ]);
    const mapped = { wrong: 0, report: { path: "shared_memory", tokens: 64 } };
    expect(await moved(first, second)).toMatchObject(mapped);
    expect(await moved(first, elsewhere)).toMatchObject(mapped);
    const warnings = first.log.split("\n").filter((line) => line.includes("peers on other hosts are refused"));
    expect(warnings).toEqual([expect.stringContaining(`KVT_NIXL_LIBRARY names ${ABSENT}, which is not there`)]);
    expect(warnings[0]).toContain("`kvt nixl install`");
  }, 60_000);

  it("a peer on another host is refused by name, with the remedy, whichever side has a NIXL", async ({ skip }) => {
    const sender = await open(here, "context");
    namespaces?.beOtherHost("generation");
    const refused = {
      code: "NO_PATH",
      message: expect.stringMatching(
        /^no path moves KV between this process and \S.*: it is on another host, where only NIXL leads, and at least one/,
      ),
    };
    const receiver = await open(there, "generation");
    expect(await moved(sender, receiver)).toMatchObject(refused);
    expect(await moved(receiver, sender)).toMatchObject(refused);
    expect(errors.NO_PATH.remedy).toMatch(/between hosts bring NIXL to both \(`kvt nixl install`\)/);
    expect([await sender.stats(), await receiver.stats()].map(({ receives }) => receives.open)).toEqual([0, 0]);
    if ("missing" in brought) skip(brought.missing);
    const restoreNixl = setEnvironment({ KVT_NIXL_LIBRARY: "library" in brought ? brought.library : "" });
    const able = await open(there, "generation");
    restoreNixl();
    expect(await moved(sender, able)).toMatchObject(refused);
    expect(await moved(able, sender)).toMatchObject(refused);
  }, 60_000);
});
