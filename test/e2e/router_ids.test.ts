import { expect, it } from "vitest";
import { deploy, type Golden, goldens } from "./deployed.ts";

const BIG = 2n ** 62n + 1n;
const golden = goldens.find(({ name }) => name === "raw-lily") as Golden;

it.each([
  ["the context worker", { hooks: { ids: null }, env: { KVT_TEST_CTX_REQUEST_ID: String(BIG) } }],
  ["the router", { hooks: { ids: { next: () => BIG } } }],
] as const)(
  "ctx_request_id 2^62+1, given by %s, finds its KV at the other end of both hops",
  async (_who, options) => {
    await using deployed = await deploy({ context: 1, generation: 1, settings: { maxRetries: 0 }, ...options });
    const response = await deployed.post("/v1/completions", { prompt: golden.text, max_tokens: 48, temperature: 0 });
    expect(response.status).toBe(200);
    const { choices } = (await response.json()) as { choices: { text: string }[] };
    expect(choices[0]?.text).toBe(golden.output_text);
    const worker = deployed.generation[0];
    const transfers = await (await fetch(`${worker?.url}/kv/transfers`)).text();
    expect(transfers).toContain('"transfer"');
  },
  180_000,
);
