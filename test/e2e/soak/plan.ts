import { type Golden, goldens } from "../../integration/worker/golden.ts";

/** One request of a soak; all of it follows from the seed and its number. */
export interface PlannedRequest {
  readonly prompt: Prompt;
  readonly stream: boolean;
  /** The client leaves after this time; null: it stays. */
  readonly leaveAfterMs: number | null;
}

export interface Prompt {
  readonly kind: "chat" | "completion";
  readonly body: Readonly<Record<string, unknown>>;
  readonly name: string;
}

/** Mulberry32: small, fast, the same everywhere. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const goldenPrompt = ({ kind, body, name }: Golden): Prompt => ({ kind, body, name });

/** Prompts of 1 to 1,900 tokens, mostly short, some with a common beginning; outputs of 2 to 48 tokens. */
export function promptsOf(seed: number, count: number): readonly Prompt[] {
  const draw = random(seed);
  const numbered = Array.from({ length: count }, (_, index): Prompt => {
    const length = Math.ceil(1900 ** draw());
    const offset = draw() < 0.5 ? 0 : 1 + Math.floor(draw() * 250);
    const prompt = Array.from({ length }, (_, at) => 5 + ((at * 7 + offset) % 300));
    const body = { prompt, max_tokens: 2 + Math.floor(draw() * 47), temperature: 0, ignore_eos: draw() < 0.8 };
    return { kind: "completion", body, name: `${length} tokens, number ${index}` };
  });
  return [...goldens.map(goldenPrompt), ...numbered];
}

const LEAVING = 0.2;
const LEAVE_MS = 400;

/** Request `index` of the soak with this seed. */
export function requestOf(seed: number, index: number, prompts: readonly Prompt[]): PlannedRequest {
  const draw = random(Math.imul(seed, 0x9e3779b1) ^ Math.imul(index + 1, 0x85ebca6b));
  const prompt = prompts[Math.floor(draw() * prompts.length)];
  if (prompt === undefined) throw new Error("a soak needs prompts");
  return { prompt, stream: draw() < 0.5, leaveAfterMs: draw() < LEAVING ? draw() * LEAVE_MS : null };
}
