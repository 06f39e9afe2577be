// npm run docs: writes the pages that are generated from source.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import ts from "typescript";
import { errorsPage } from "./errors_page.mjs";
import { root } from "./prepare.mjs";
import { main, step } from "./steps.mjs";

/** Node 20 can't import TypeScript. The errors import nothing but their own tables, so that their text is enough. */
function moduleUrl(file) {
  const { outputText } = ts.transpileModule(readFileSync(file, "utf8"), {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  });
  const text = outputText.replace(/from "(\.[^"]+)"/g, (_, path) => `from "${moduleUrl(join(dirname(file), path))}"`);
  return `data:text/javascript,${encodeURIComponent(text)}`;
}

await main(() =>
  step("docs/errors.md", async () => {
    const { errors } = await import(moduleUrl(join(root, "src/errors.ts")));
    writeFileSync(join(root, "docs/errors.md"), errorsPage(errors));
    return `${Object.keys(errors).length} codes`;
  }),
);
