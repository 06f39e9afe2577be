import { callInChild } from "../native/child_call.ts";
import type { NativeCudaDevice, NativeCudaReport } from "../native/cuda_binding.ts";
import type { NixlEnv } from "../nixl/places.ts";
import { entriesOf, textOf } from "./host.ts";

export interface CudaFacts {
  /** Version of the kernel module; null: there is no NVIDIA driver. */
  readonly driver: string | null;
  /** libcuda as it was opened, null: it can't be. */
  readonly library: string | null;
  /** "13.0": the newest CUDA that the driver knows. */
  readonly version: string | null;
  /** Why no GPU can be used, in the loader's or in CUDA's words; null: one can. */
  readonly why: string | null;
  readonly devices: readonly NativeCudaDevice[];
  /** Of the kernel module, whatever the CUDA library makes of them. */
  readonly modules: readonly { readonly model: string; readonly bus: string }[];
}

const GPUS = "/proc/driver/nvidia/gpus";

/** Opens every GPU in a child process: a broken CUDA library crashes that. What is wrong is added to `problems`. */
export async function cudaFacts(env: NixlEnv, addon: boolean, problems: string[]): Promise<CudaFacts> {
  const driver = textOf("/proc/driver/nvidia/version").match(/Kernel Module.*?\s(\d+\.[\d.]*\d)/)?.[1] ?? null;
  const modules = entriesOf(GPUS).map((bus) => ({
    bus,
    model: textOf(`${GPUS}/${bus}/information`).match(/^Model:\s+(.+)$/m)?.[1] ?? "unknown",
  }));
  const { library, version, why, devices } = addon ? await probed(env) : nothing("the addon can't be loaded");
  const none = devices.length === 0 ? "the driver shows this process no GPU (CUDA_VISIBLE_DEVICES)" : null;
  const facts = { driver, library, version, why: why ?? none, devices, modules };
  if (facts.why !== null && modules.length > 0 && addon) {
    const count = `${modules.length} GPU${modules.length > 1 ? "s" : ""}`;
    problems.push(`${count} of the NVIDIA driver ${driver} can't be used: ${facts.why}; ${HIDDEN}`);
  }
  for (const { device, name, why: wrong } of devices) {
    if (wrong !== null) problems.push(`cuda:${device} (${name}) takes no KV pool: ${wrong}; ${BROKEN}`);
  }
  return facts;
}

const HIDDEN =
  "a container needs the driver's libraries and devices (docker run --gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility)";
const BROKEN = "nvidia-smi shows who uses it, and whether its mode or ECC state keeps others out";

async function probed(env: NixlEnv): Promise<NativeCudaReport> {
  const answer = await callInChild<NativeCudaReport>({ name: "probeCuda", tried: "CUDA", env });
  return "value" in answer ? answer.value : nothing(answer.why);
}

const nothing = (why: string): NativeCudaReport => ({ library: null, version: null, why, devices: [] });
