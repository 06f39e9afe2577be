import { KvError } from "../errors.ts";
import type { RequestId } from "../ids.ts";
import { decodeState } from "../transceiver/opaque_state.ts";
import { dependsOnPeer } from "./admission.ts";
import type { WorkerRequest } from "./request.ts";

export interface StandoffOptions {
  /** How long a request waits for what waits for other workers before it gives way. */
  readonly afterMs: number;
  /** Blocks of the whole pool. */
  readonly blocks: number;
  readonly blocksFor: (tokens: number) => number;
  readonly live: Iterable<WorkerRequest>;
  /** Requests without blocks, in order of arrival. */
  readonly waiting: Iterable<WorkerRequest>;
  /** Ends a waiting request, so that its other half, which holds blocks elsewhere, is given up. */
  readonly giveWay: (request: WorkerRequest, error: KvError) => void;
}

/**
 * Two workers of both roles may each hold blocks of a request whose other half waits for blocks on the other one: neither goes on. Ids count
 * up with time, so all workers agree who came first, and in every circle of such requests somebody waits for an older one: that one gives
 * way (docs/decisions/036). Whoever waits only for what finishes by itself is left alone.
 */
export class Standoffs {
  readonly #options: StandoffOptions;
  #timer: NodeJS.Timeout | null = null;
  #head: WorkerRequest | null = null;

  constructor(options: StandoffOptions) {
    this.#options = options;
  }

  /** The first that can't be admitted; null: nobody waits for blocks. */
  blockedAt(head: WorkerRequest | null): void {
    const isStandoff = head !== null && this.#dependents(head).length > 0;
    if (isStandoff && head === this.#head) return;
    clearTimeout(this.#timer ?? undefined);
    this.#head = isStandoff ? head : null;
    this.#timer = isStandoff ? setTimeout(() => this.#end(head), this.#options.afterMs) : null;
  }

  #end(head: WorkerRequest): void {
    this.#head = null;
    const { waiting, giveWay, afterMs } = this.#options;
    const ids = this.#dependents(head);
    const oldest = ids.reduce<RequestId | undefined>(
      (least, id) => (least !== undefined && least < id ? least : id),
      undefined,
    );
    if (oldest === undefined) return;
    let isBehind = false;
    for (const request of [...waiting]) {
      isBehind ||= request === head;
      const id = isBehind ? idOfOtherHalf(request) : null;
      // Its own other half may be what it waits for: then nobody else can give way.
      if (id === null || id < oldest) continue;
      giveWay(request, new KvError("GAVE_WAY", { request: request.spec.id, older: oldest, ms: afterMs }));
    }
  }

  /** Ids of those whose blocks `head` needs and that wait for other workers; none when all else could make room for it. */
  #dependents(head: WorkerRequest): RequestId[] {
    const { live, blocks, blocksFor } = this.#options;
    const ids: RequestId[] = [];
    let held = 0;
    for (const request of live) {
      const { spec, admittedMs, receivedMs, tokensReserved } = request;
      if (admittedMs === 0 || receivedMs > 0 || !dependsOnPeer(request) || spec.role.kind === "aggregated") continue;
      held += blocksFor(tokensReserved);
      if (spec.role.contextId !== null) ids.push(spec.role.contextId);
    }
    return blocksFor(head.tokensReserved) > blocks - held ? ids : [];
  }
}

/** Of a waiting request whose other half holds blocks on another worker. */
function idOfOtherHalf({ spec: { role } }: WorkerRequest): RequestId | null {
  if (role.kind === "context") return role.generationFirst === true ? role.contextId : null;
  if (role.kind !== "generation" || role.peer !== undefined) return null;
  if (role.contextId !== null) return role.contextId;
  try {
    return decodeState(role.state).requestId;
  } catch {
    // Fetching will say what is wrong with it.
    return null;
  }
}
