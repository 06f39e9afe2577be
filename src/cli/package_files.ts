import { join } from "node:path";
import { fileURLToPath } from "node:url";

// src/cli and dist/cli lie equally deep.
const root = fileURLToPath(new URL("../../", import.meta.url));

/** A file that ships with this package: `models/tiny.gguf`, `bin/kvt.js`. */
export const packageFile = (path: string): string => join(root, path);
