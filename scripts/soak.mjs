// A long run of random requests against router, context and generation workers: npm run soak -- [--minutes N] [--requests N] [--seed N].
// It goes on until both the minutes and the requests are over. Prints progress and a table; the same seed asks the same requests.
import { spawnSync } from "node:child_process";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "30" },
    requests: { type: "string", default: "10000" },
    seed: { type: "string", default: String(Date.now() % 2 ** 31) },
  },
});
const result = spawnSync(
  process.execPath,
  ["node_modules/vitest/vitest.mjs", "run", "--project=integration", "test/e2e/soak", "--disable-console-intercept"],
  {
    stdio: "inherit",
    env: {
      ...process.env,
      KVT_SOAK_SECONDS: String(60 * Number(values.minutes)),
      KVT_SOAK_REQUESTS: values.requests,
      KVT_SOAK_SEED: values.seed,
    },
  },
);
process.exit(result.status ?? 1);
