// npm test: installs and builds what is missing, then runs every test that needs no GPU. Arguments go to vitest.
import { runCppTests } from "./cpp_tests.mjs";
import { NIXL_TESTS, runNixlTests } from "./nixl.mjs";
import { prepare } from "./prepare.mjs";
import { addCounts, closingSummary, noCounts } from "./report.mjs";
import { main } from "./steps.mjs";
import { runVitest } from "./vitest.mjs";

await main(async () => {
  await prepare();
  const counts = noCounts();
  const args = process.argv.slice(2);
  if (args.length > 0) addCounts(counts, await runVitest({ title: "chosen tests", args }));
  else {
    addCounts(counts, await runCppTests({ without: NIXL_TESTS }));
    addCounts(counts, await runNixlTests(["1.5.1"]));
    addCounts(counts, await runVitest({ title: "unit tests", args: ["--project", "unit"] }));
    addCounts(
      counts,
      await runVitest({ title: "integration and end-to-end tests", args: ["--project", "integration"] }),
    );
  }
  console.log(closingSummary(counts));
  return counts.failed > 0 ? 1 : 0;
});
