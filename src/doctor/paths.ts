import type { ProbedPath } from "../transceiver/path_probe.ts";
import type { CudaFacts } from "./cuda.ts";
import type { HostFacts } from "./host.ts";
import type { LocalTrial } from "./local_trial.ts";
import type { NixlFacts } from "./nixl.ts";

export interface PathFacts {
  readonly name: string;
  readonly usable: boolean;
  /** Why it can be used, or why not and what to do. */
  readonly why: string;
  /** Where it was tried: what it moved between two pools of this process. */
  readonly measured: ProbedPath["pieces"] | null;
}

const NO_NIXL = "there is no NIXL, so peers on other hosts are refused; `kvt nixl install` brings it";

/** Which ways of moving KV this machine has; `trial` null: shared memory could not be tried for want of the addon. */
export function pathFacts(host: HostFacts, nixl: NixlFacts, cuda: CudaFacts, trial: LocalTrial | null): PathFacts[] {
  return [sharedMemory(host, trial), cudaPeer(cuda), nixlDirect(nixl), nixlStaged(nixl)];
}

const unmeasured = (name: string, usable: boolean, why: string): PathFacts => ({ name, usable, why, measured: null });

function sharedMemory({ socketDirectory }: HostFacts, trial: LocalTrial | null): PathFacts {
  const name = "shared_memory";
  if (trial === null) return unmeasured(name, false, "the addon can't be loaded");
  if ("why" in trial) return unmeasured(name, false, trial.why);
  const why = `processes of this user that share ${socketDirectory.path} map each other's pools, in whatever namespaces; tried with two pools`;
  return { name, usable: true, why, measured: trial.pieces };
}

function cudaPeer({ devices, why }: CudaFacts): PathFacts {
  const name = "cuda_peer";
  const able = devices.filter((device) => device.why === null);
  if (able.length > 0) {
    const which = able.map(({ device }) => `cuda:${device}`).join(", ");
    return unmeasured(
      name,
      true,
      `between pools on ${which} of processes of this host (memory: "cuda:N"; docs/gpu.md)`,
    );
  }
  const text = why ?? devices.map((device) => device.why).join("; ");
  return unmeasured(name, false, `${text}. Pools lie in memory of the host then, which the other paths move`);
}

function nixlDirect(nixl: NixlFacts): PathFacts {
  const name = "nixl_direct";
  const plugin = workingPlugin(nixl);
  if ("why" in plugin) return unmeasured(name, false, plugin.why);
  if (plugin.name === "UCX") {
    return unmeasured(name, true, "any host that NIXL's plug-in UCX reaches; taken for pieces of 256 KiB and more");
  }
  const why = `plug-in ${plugin.name} reads into staging slots only (nixl_staged): its reads of a dead peer never end`;
  return unmeasured(name, false, why);
}

function nixlStaged(nixl: NixlFacts): PathFacts {
  const name = "nixl_staged";
  const plugin = workingPlugin(nixl);
  if ("why" in plugin) return unmeasured(name, false, plugin.why);
  const why = `any host that NIXL's plug-in ${plugin.name} reaches, through staging slots; taken for smaller pieces`;
  return unmeasured(name, true, why);
}

function workingPlugin({ library }: NixlFacts): { readonly name: string } | { readonly why: string } {
  if (library === null) return { why: NO_NIXL };
  const { trial } = library;
  if (trial === null || trial.why !== null) return { why: trial?.why ?? "no plug-in was tried" };
  return { name: trial.plugin };
}
