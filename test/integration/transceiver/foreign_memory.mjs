import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { createInterface } from "node:readline";

export const hasPython = spawnSync("python3", ["--version"]).status === 0;

/** Memfds of another process: Node makes none of its own. */
export class ForeignMemory {
  /** @type {readonly number[]} */
  fds;
  #owner;

  constructor(owner, fds) {
    this.#owner = owner;
    this.fds = fds;
  }

  /** @param {number} bytes of each */
  static async open(bytes, count = 1) {
    const program = `import os,sys
fds = [os.memfd_create("foreign", os.MFD_ALLOW_SEALING) for _ in range(${count})]
for fd in fds: os.ftruncate(fd, ${bytes})
print(*fds, flush=True)
sys.stdin.read(1)
`;
    const owner = spawn("python3", ["-c", program], { stdio: ["pipe", "pipe", "inherit"] });
    const names = String((await once(createInterface(owner.stdout), "line"))[0]).split(" ");
    return new ForeignMemory(
      owner,
      names.map((fd) => openSync(`/proc/${owner.pid}/fd/${fd}`, "r+")),
    );
  }

  get fd() {
    return this.fds[0] ?? -1;
  }

  [Symbol.dispose]() {
    for (const fd of this.fds) closeSync(fd);
    this.#owner.stdin.end("x");
  }
}
