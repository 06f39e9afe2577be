export interface NativeCudaReport {
  /** Null: there is none, and `why` says so. */
  readonly library: string | null;
  readonly why: string | null;
  /** "13.0": the newest CUDA that the driver knows. */
  readonly version: string | null;
  readonly devices: readonly NativeCudaDevice[];
}

export interface NativeCudaDevice {
  readonly device: number;
  readonly name: string;
  readonly uuid: string;
  /** PCI, "0000:17:00.0". */
  readonly bus: string;
  /** "9.0". */
  readonly capability: string;
  readonly multiprocessors: number;
  /** Numbers of the other GPUs whose memory its kernels reach. */
  readonly reaches: readonly number[];
  readonly memoryBytes: number;
  /** Its memory can be handed to other processes as file descriptors, which pools need. */
  readonly exportable: boolean;
  /** The form of the kernels that runs: "cubin sm_90", "PTX"; null: none. */
  readonly kernels: string | null;
  /** Null: pools can lie there. */
  readonly why: string | null;
}
