import { entriesOf, textOf } from "./host.ts";

export interface CudaFacts {
  /** Version of the kernel module; null: there is no NVIDIA driver. */
  readonly driver: string | null;
  readonly devices: readonly { readonly model: string; readonly bus: string }[];
}

const GPUS = "/proc/driver/nvidia/gpus";

/** From the kernel module alone, so that a broken CUDA library can't hide a GPU. */
export function cudaFacts(): CudaFacts {
  const driver = textOf("/proc/driver/nvidia/version").match(/Kernel Module.*?\s(\d+\.[\d.]*\d)/)?.[1] ?? null;
  const devices = entriesOf(GPUS).map((bus) => ({
    bus,
    model: textOf(`${GPUS}/${bus}/information`).match(/^Model:\s+(.+)$/m)?.[1] ?? "unknown",
  }));
  return { driver, devices };
}
