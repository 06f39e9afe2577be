import type { DataPlane, PlaneRead, ReadListener, ReadRequest } from "../../../src/transceiver/data_plane.ts";

/** A real data plane whose reads start only while the gate is open: a transfer stays granted for as long as a test looks at it. */
export class Gate {
  readonly #held = new Set<() => void>();
  #open = true;
  /** Called when a read is held back. */
  onHeld: () => void = () => {};

  close(): void {
    this.#open = false;
  }

  open(): void {
    this.#open = true;
    for (const go of [...this.#held]) go();
  }

  readonly around = (real: DataPlane): DataPlane =>
    new Proxy(real, {
      get: (plane, name) => {
        if (name === "read")
          return (request: ReadRequest, listener: ReadListener) => this.#read(plane, request, listener);
        const member: unknown = Reflect.get(plane, name, plane);
        return typeof member === "function" ? member.bind(plane) : member;
      },
    });

  #read(plane: DataPlane, request: ReadRequest, listener: ReadListener): PlaneRead {
    if (this.#open) return plane.read(request, listener);
    let read: PlaneRead | undefined;
    const go = (): void => {
      this.#held.delete(go);
      read = plane.read(request, listener);
    };
    this.#held.add(go);
    this.onHeld();
    return {
      cancel: () => {
        if (read !== undefined) {
          read.cancel();
          return;
        }
        if (!this.#held.delete(go)) return;
        // As the real one does: told later, the end first.
        queueMicrotask(() => {
          const ended = {
            status: "cancelled",
            bytes: 0,
            movingMs: 0,
            path: "shared_memory",
            runs: 0,
            pieces: 0,
          } as const;
          listener.ended({ ...ended, atMs: plane.nowMs() });
          listener.quiet();
        });
      },
    };
  }
}
