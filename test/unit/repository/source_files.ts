import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

export const repositoryRoot = fileURLToPath(new URL("../../..", import.meta.url));

/** Files below `folder` (relative to the repository) whose path ends with `ending`, sorted; relative to the repository. */
export function filesBelow(folder: string, ending: string): string[] {
  return readdirSync(join(repositoryRoot, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(ending))
    .map((entry) => relative(repositoryRoot, join(entry.parentPath, entry.name)))
    .sort();
}

export interface Import {
  readonly specifier: string;
  readonly typeOnly: boolean;
  /** A URL beside the module: the file of a worker thread, which has its own copy of every module. */
  readonly thread: boolean;
  /** Relative to the repository; undefined for a package or a builtin. */
  readonly target: string | undefined;
}

/** Every import of a source file as the compiler sees it: static, re-export, dynamic, `import("…")` types, URLs beside the module. */
export function importsOf(file: string): Import[] {
  const text = readFileSync(join(repositoryRoot, file), "utf8");
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.ES2022, true);
  const found: Import[] = [];
  const add = (specifier: string, typeOnly: boolean, thread = false): void => {
    if (!specifier.startsWith(".")) return void found.push({ specifier, typeOnly, thread, target: undefined });
    const path = relative(repositoryRoot, resolve(repositoryRoot, dirname(file), specifier));
    // A thread's file is named as it is called in dist/.
    const source = path.replace(/\.js$/, ".ts");
    found.push({ specifier, typeOnly, thread, target: existsSync(join(repositoryRoot, source)) ? source : path });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node) && ts.isStringLiteral(node.moduleSpecifier)) {
      add(node.moduleSpecifier.text, node.importClause?.isTypeOnly ?? false);
    } else if (ts.isExportDeclaration(node) && node.moduleSpecifier && ts.isStringLiteral(node.moduleSpecifier)) {
      add(node.moduleSpecifier.text, node.isTypeOnly);
    } else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      const [argument] = node.arguments;
      if (argument && ts.isStringLiteral(argument)) add(argument.text, false);
    } else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      if (ts.isStringLiteral(node.argument.literal)) add(node.argument.literal.text, true);
    } else if (ts.isNewExpression(node) && node.expression.getText() === "URL") {
      const [argument] = node.arguments ?? [];
      if (argument && ts.isStringLiteral(argument) && /^\..*\.[jt]s$/.test(argument.text))
        add(argument.text, false, true);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}
