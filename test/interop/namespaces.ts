import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { until } from "../integration/waits.ts";

/** Of the interface in each. */
export const DEVICE = "kvt0";
export type Place = "context" | "generation";
const places: readonly Place[] = ["context", "generation"];

/** Two network namespaces of one user namespace, joined by a cable that can be pulled out at either end. No rights are needed where the system lets users have namespaces. */
export class Namespaces implements AsyncDisposable {
  readonly #holders: ReadonlyMap<Place, ChildProcess>;

  private constructor(holders: ReadonlyMap<Place, ChildProcess>) {
    this.#holders = holders;
  }

  /** @returns a sentence where the system forbids it */
  static async open(): Promise<Namespaces | string> {
    const holders = new Map<Place, ChildProcess>();
    const opened = new Namespaces(holders);
    try {
      const first = await hold("unshare", ["-U", "-r", "-n", "-m"]);
      holders.set("context", first);
      holders.set("generation", await hold("nsenter", [...entering(first, false), "unshare", "-n", "-m"]));
      const other = String(holders.get("generation")?.pid);
      opened.#run("context", ["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", other]);
      for (const place of places) {
        opened.#run(place, ["ip", "address", "add", `${opened.address(place)}/24`, "dev", DEVICE]);
        opened.#run(place, ["ip", "link", "set", "lo", "up"]);
        opened.#run(place, ["ip", "link", "set", DEVICE, "up"]);
      }
      await opened.#untilUp();
      return opened;
    } catch (error) {
      await opened[Symbol.asyncDispose]();
      const why = error instanceof Error ? error.message : String(error);
      return `two network namespaces with a link can't be made here: ${why}`;
    }
  }

  address = (place: Place): string => (place === "context" ? "10.77.0.1" : "10.77.0.2");

  /** What starts a program there: put before its own command line. */
  entry(place: Place): readonly string[] {
    const holder = this.#holders.get(place);
    return holder === undefined ? [] : ["nsenter", ...entering(holder, true)];
  }

  /** From now on programs that are started there see the kernel of another machine, by the id of its boot. */
  beOtherHost(place: Place): void {
    const bootId = "/proc/sys/kernel/random/boot_id";
    const script = `f=$(mktemp) && echo ${randomUUID()} > $f && mount --bind $f ${bootId} && rm $f`;
    this.#run(place, ["sh", "-c", script]);
  }

  pullOut(place: Place): void {
    this.#run(place, ["ip", "link", "set", DEVICE, "down"]);
  }

  /** Resolves when it carries again. */
  async plugIn(place: Place): Promise<void> {
    this.#run(place, ["ip", "link", "set", DEVICE, "up"]);
    await this.#untilUp();
  }

  /** UCX takes no device whose carrier the kernel has not announced yet, and until then nothing goes through. */
  async #untilUp(): Promise<void> {
    await until("the link is up at both ends", () => places.every((place) => this.#isUp(place)), 10_000);
  }

  #isUp(place: Place): boolean {
    return this.#run(place, ["ip", "-brief", "link", "show", "dev", DEVICE]).split(/\s+/)[1] === "UP";
  }

  /** @returns what it printed */
  #run(place: Place, command: readonly string[]): string {
    const [program = "", ...args] = [...this.entry(place), ...command];
    const ran = spawnSync(program, args, { encoding: "utf8", timeout: 10_000 });
    if (ran.status === 0) return ran.stdout;
    throw new Error(`${command.join(" ")}: ${ran.stderr.trim() || ran.error?.message}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const holder of this.#holders.values()) holder.kill("SIGKILL");
  }
}

const entering = (holder: ChildProcess, network: boolean): readonly string[] => [
  "-t",
  String(holder.pid),
  "-U",
  "--preserve-credentials",
  ...(network ? ["-n", "-m"] : []),
];

/** UCX finds network devices in /sys, which shows those of the namespace that it was mounted from. */
const HOLD = "mount -t sysfs kvt /sys && echo held && exec cat";

/** A process in namespaces of its own, that ends with its standard input. */
async function hold(program: string, args: readonly string[]): Promise<ChildProcess> {
  const child = spawn(program, [...args, "sh", "-c", HOLD], { stdio: ["pipe", "pipe", "pipe"] });
  let said = "";
  child.stderr.on("data", (bytes: Buffer) => {
    said += bytes.toString();
  });
  const held = once(child.stdout, "data").then(() => true);
  const failed = once(child, "close").then(() => false);
  const missing = once(child, "error").then(([error]: unknown[]) => Promise.reject(error));
  if (await Promise.race([held, failed, missing])) return child;
  throw new Error(`${program}: ${said.trim()}`);
}
