import { readFileSync, writeFileSync } from "node:fs";
import { afterEach, expect, test } from "vitest";
import { BYTES_PER_TOKEN, layout, type Peer, Peers } from "./peer_process.ts";

const file = "/proc/sys/vm/nr_hugepages";
const BLOCKS = 300;
const TOKENS = BLOCKS * layout.tokensPerBlock;
const PAGE = 2 << 20;
const PAGES = Math.ceil((TOKENS * BYTES_PER_TOKEN) / PAGE);

const setAside = (): number => Number(readFileSync(file, "utf8"));
const before = setAside();

/** How many huge pages there are afterwards: fewer when memory is too fragmented, `undefined` where it is not ours to say. */
function setHugePages(count: number): number | undefined {
  try {
    writeFileSync(file, String(count));
  } catch {
    return undefined;
  }
  return setAside();
}
afterEach(() => {
  setHugePages(before);
});

const open = (peers: Peers): Promise<Peer> => peers.open({ pool: { memory: "host", blocks: BLOCKS } });

/** Every block of the pools, byte for byte. */
async function moveAll(sender: Peer, receiver: Peer): Promise<void> {
  const { state } = await sender.send({ request: 1, tokens: TOKENS });
  await receiver.receive({ id: 1, state, tokens: TOKENS });
  expect(await receiver.received(1)).toMatchObject({ wrong: 0, report: { bytes: TOKENS * BYTES_PER_TOKEN } });
}

test("pools of huge pages that were set aside are filled and read like others", async (context) => {
  // More than both pools need: what else runs on the machine takes some too.
  const there = setHugePages(before + 8 * PAGES);
  if (there === undefined) context.skip(`${file} can't be written: needs root outside a container`);
  if (there !== before + 8 * PAGES) context.skip("the kernel has no contiguous memory for huge pages");
  await using peers = new Peers();
  const sender = await open(peers);
  const receiver = await open(peers);
  const memory = { bytes: TOKENS * BYTES_PER_TOKEN, pages: "hugetlb", reason: null };
  expect((await sender.stats()).memory).toEqual(memory);
  expect((await receiver.stats()).memory).toEqual(memory);
  const kernel = readFileSync(`/proc/${sender.pid}/smaps`, "utf8");
  expect(/memfd:kvt-pool[\s\S]*?KernelPageSize:\s+(\d+) kB/.exec(kernel)?.[1]).toBe("2048");
  await moveAll(sender, receiver);
});

test("when too few huge pages are free, pools are of normal pages, say why and work", async (context) => {
  const there = setHugePages(before + 1);
  if (there === undefined) context.skip(`${file} can't be written: needs root outside a container`);
  await using peers = new Peers();
  const [sender, receiver] = [await open(peers), await open(peers)];
  for (const peer of [sender, receiver]) {
    const { memory } = await peer.stats();
    expect(memory.pages).not.toBe("hugetlb");
    expect(memory.reason).toMatch(new RegExp(`^${PAGES} huge pages of 2 MiB are needed, \\d+ of \\d+ are free$`));
  }
  await moveAll(sender, receiver);
});

test("without huge pages the reason says that none are set aside", async (context) => {
  if (before > 0) context.skip(`${before} huge pages are set aside on this machine`);
  await using peers = new Peers();
  expect((await (await open(peers)).stats()).memory.reason).toBe(
    "no huge pages of 2 MiB are set aside (vm.nr_hugepages)",
  );
});
