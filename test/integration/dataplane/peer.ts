import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { nativeLayoutOf } from "../../../src/kv/placement.ts";

export type CompletionRecord = readonly [number, number, number, number, number, number, number, number];
export type Piece = readonly [offset: number, bytes: number];

/** What `packedLayout` of plane.mjs takes. */
export interface PackedShape {
  readonly layers: number;
  readonly planes: number;
  readonly heads: number;
  readonly tokensPerBlock: number;
  readonly headBytes: number;
}

export const layout: PackedShape = { layers: 3, planes: 2, heads: 2, tokensPerBlock: 32, headBytes: 96 };

/** The same for the addon itself. */
export const nativeLayout = nativeLayoutOf(
  { layers: 3, kvHeads: 2, headDim: 24, dtype: "f32", tokensPerBlock: 32, attention: "gqa" },
  { tpRank: 0, tpSize: 1, ppRank: 0, ppSize: 1 },
  {},
);

export const script = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

/** A 0700 directory for sockets, gone after the test. */
export class SocketDirectory implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "kvt-test-"));
  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** A process with one data plane (peer.mjs). */
export class Peer implements AsyncDisposable {
  readonly process: ChildProcess;
  readonly #pending = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  #nextId = 1;

  constructor() {
    this.process = fork(script("peer.mjs"), { serialization: "advanced", execArgv: [] });
    this.process.on("message", (message: { id: number; value?: never; error?: string }) => {
      const waiting = this.#pending.get(message.id);
      this.#pending.delete(message.id);
      if (message.error === undefined) waiting?.resolve(message.value as never);
      else waiting?.reject(new Error(message.error));
    });
    this.process.on("exit", (code, signal) => {
      for (const { reject } of this.#pending.values()) reject(new Error(`peer ended: ${code ?? signal}`));
      this.#pending.clear();
    });
  }

  call<Value = void>(call: string, ...args: readonly unknown[]): Promise<Value> {
    const id = this.#nextId++;
    return new Promise<Value>((resolve, reject) => {
      this.#pending.set(id, { resolve: resolve as (value: never) => void, reject });
      this.process.send({ id, call, args });
    });
  }

  open(options: { readonly blocks: number; readonly socketDir: string; readonly layout?: PackedShape }) {
    return this.call<{ descriptor: Uint8Array; blockBytes: number; poolBytes: number }>("open", {
      layout,
      ...options,
    });
  }

  next(kind: number, id: number): Promise<CompletionRecord> {
    return this.call("next", kind, id);
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = once(this.process, "exit");
    this.process.kill(signal);
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill("SIGKILL");
  }
}

/** Where tokens [from, to) of a sequence lie in a pool, element by element from the definition of a block's bytes. */
export function piecesOf(
  of: PackedShape,
  blockBytes: number,
  table: readonly number[],
  from: number,
  to: number,
): Piece[] {
  const pieces: Piece[] = [];
  const rows = of.layers * of.planes * of.heads;
  for (let token = from; token < to; token++) {
    const block = table[Math.floor(token / of.tokensPerBlock)] ?? Number.NaN;
    for (let row = 0; row < rows; row++) {
      const inBlock = (row * of.tokensPerBlock + (token % of.tokensPerBlock)) * of.headBytes;
      pieces.push([block * blockBytes + inBlock, of.headBytes]);
    }
  }
  return pieces;
}

/** All of the pool but `pieces`. */
export function restOf(poolBytes: number, pieces: readonly Piece[]): Piece[] {
  const rest: Piece[] = [];
  let at = 0;
  for (const [offset, bytes] of [...pieces].sort((left, right) => left[0] - right[0])) {
    if (offset > at) rest.push([at, offset - at]);
    at = offset + bytes;
  }
  if (at < poolBytes) rest.push([at, poolBytes - at]);
  return rest;
}
