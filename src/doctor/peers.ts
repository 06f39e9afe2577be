import { instanceDifferences } from "../layout.ts";
import { type ProbedPath, ProbePath } from "../transceiver/path_probe.ts";
import type { ProbePlace } from "../transceiver/probe_place.ts";
import { WorkerClient, type WorkerFacts } from "./worker_client.ts";

export interface PairPath {
  readonly name: string;
  /** The one that transfers between the two take. */
  readonly chosen: boolean;
  readonly usable: boolean;
  /** Why it is taken, can be used, or can't. */
  readonly why: string;
  /** null: it could not be. */
  readonly measured: ProbedPath["pieces"] | null;
}

export interface PairFacts {
  /** KV goes from the source, which is read, to the reader. */
  readonly source: WorkerFacts;
  readonly reader: WorkerFacts;
  /** `differences` keep KV from moving; `notes` differ and do no harm. */
  readonly layout: { readonly fits: boolean; readonly differences: string; readonly notes: readonly string[] };
  /** Where both processes are; null when no probe came about. */
  readonly places: { readonly source: ProbePlace; readonly reader: ProbePlace } | null;
  readonly chosen: string | null;
  readonly paths: readonly PairPath[];
}

interface Side {
  readonly client: WorkerClient;
  readonly facts: WorkerFacts;
}

interface Probe {
  readonly probed: ProbedPath | null;
  readonly places: PairFacts["places"];
  readonly why: string;
}

/**
 * Two running workers as a pair: whether their KV has one layout, which path it takes and why, and what each path moves. Measured between
 * the two processes, over transceivers that exist for the probe alone; takes some seconds.
 * @param problems what keeps KV from moving between them is added
 * @throws KvError SERVER_ANSWER when one of them can't be asked
 */
export async function examinePair(
  addresses: readonly [string, string],
  token: string | undefined,
  problems: string[],
): Promise<PairFacts> {
  const side = async (address: string): Promise<Side> => {
    const client = new WorkerClient(address, token);
    return { client, facts: await client.facts() };
  };
  const [first, second] = await Promise.all([side(addresses[0]), side(addresses[1])]);
  // Prefill is read by decode, whichever was named first.
  const turned = first.facts.role === "GENERATION" && second.facts.role !== "GENERATION";
  const [source, reader] = turned ? [second, first] : [first, second];
  const layout = compareLayouts(source.facts, reader.facts);
  if (!layout.fits) problems.push(`KV can't move between the two workers: ${layout.differences}`);
  if (source.facts.version !== reader.facts.version) {
    problems.push(`the two workers are of versions ${source.facts.version} and ${reader.facts.version}: run one`);
  }
  for (const { facts } of [source, reader]) {
    if (facts.degraded !== null) problems.push(`${facts.url} is degraded: ${facts.degraded}`);
  }
  const free = await probe(source, reader, null);
  const paths: PairPath[] = [];
  for (const name of new Set([...source.facts.transports, ...reader.facts.transports])) {
    paths.push(await pairPath(name, source, reader, free));
  }
  if (free.probed === null) problems.push(`no path works between the two workers: ${free.why}`);
  const chosen = free.probed?.path ?? null;
  return { source: source.facts, reader: reader.facts, layout, places: free.places, chosen, paths };
}

function compareLayouts(source: WorkerFacts, reader: WorkerFacts): PairFacts["layout"] {
  const differences = instanceDifferences(source, reader);
  const notes: string[] = [];
  const note = (what: string, there: string | number, here: string | number): void => {
    if (there !== here) notes.push(`${what} ${there} and ${here}`);
  };
  note("model", source.model, reader.model);
  note("tokens per block", source.layout.tokensPerBlock, reader.layout.tokensPerBlock);
  note("tensor parallel", source.tpSize, reader.tpSize);
  note("pipeline parallel", source.ppSize, reader.ppSize);
  return { fits: differences === "", differences, notes };
}

/** Over one path, or with null over the one that the two take by themselves. Never throws. */
async function probe(source: Side, reader: Side, path: ProbePath): Promise<Probe> {
  let opened: Awaited<ReturnType<WorkerClient["openProbe"]>> | undefined;
  try {
    opened = await source.client.openProbe(path);
    const { place, ...probed } = await reader.client.readProbe(path, opened.offers);
    return { probed, places: { source: opened.place, reader: place }, why: "" };
  } catch (error) {
    return { probed: null, places: null, why: error instanceof Error ? error.message : String(error) };
  } finally {
    // It ends by itself as well.
    if (opened !== undefined) await source.client.closeProbe().catch(() => {});
  }
}

async function pairPath(name: string, source: Side, reader: Side, free: Probe): Promise<PairPath> {
  const unusable = (why: string): PairPath => ({ name, chosen: false, usable: false, why, measured: null });
  const without = [source, reader].filter(({ facts }) => !facts.transports.includes(name));
  if (without.length > 0) {
    const lacking = without.map(({ facts }) => `${facts.url} has ${facts.transports.join(", ") || "no path"} only`);
    return unusable(lacking.join("; "));
  }
  if (free.probed?.path === name) {
    return { name, chosen: true, usable: true, why: whyChosen(name, free.places), measured: free.probed.pieces };
  }
  const known = ProbePath.safeParse(name);
  if (!known.success || known.data === null) return unusable("this version does not probe it");
  const { probed, why } = await probe(source, reader, known.data);
  if (probed === null) return unusable(why);
  return { name, chosen: false, usable: true, why: "works; a cheaper one is taken", measured: probed.pieces };
}

function whyChosen(name: string, places: PairFacts["places"]): string {
  if (places === null) return "the cheapest that both have";
  const { source, reader } = places;
  if (name === "shared_memory") {
    return `one machine (${reader.host}), and the reader could map the source's pool over a socket in ${source.socketDirectory}`;
  }
  return `the cheapest that both have and that works: ${whyNotMapped(source, reader)}`;
}

/** What the two places say about mapping one's memory in the other. */
function whyNotMapped(source: ProbePlace, reader: ProbePlace): string {
  if (source.bootId !== reader.bootId) return `they run on two machines, ${source.host} and ${reader.host}`;
  if (source.uid !== reader.uid) return `they are of users ${source.uid} and ${reader.uid}`;
  if (source.socketDirectory !== reader.socketDirectory) {
    return `their socket directories differ, ${source.socketDirectory} and ${reader.socketDirectory} (KVT_SOCKET_DIR)`;
  }
  if (source.namespaces.mnt !== reader.namespaces.mnt) {
    return `${source.socketDirectory} need not be one directory in both mount namespaces (share it as KVT_SOCKET_DIR)`;
  }
  return "shared memory is turned off on one side, or did not work";
}
