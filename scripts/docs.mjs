// npm run docs: writes the pages that are generated from source.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { errorsPage } from "./errors_page.mjs";
import { root } from "./prepare.mjs";
import { main, step } from "./steps.mjs";

/** Node 20 can't import TypeScript; src/errors.ts imports nothing, so its text is enough. */
async function importLeaf(file) {
  const { outputText } = ts.transpileModule(readFileSync(file, "utf8"), {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  });
  return import(`data:text/javascript,${encodeURIComponent(outputText)}`);
}

await main(() =>
  step("docs/errors.md", async () => {
    const { errors } = await importLeaf(join(root, "src/errors.ts"));
    writeFileSync(join(root, "docs/errors.md"), errorsPage(errors));
    return `${Object.keys(errors).length} codes`;
  }),
);
