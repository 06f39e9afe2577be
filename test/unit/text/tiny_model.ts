import { fileURLToPath } from "node:url";
import { ReferenceEngine } from "../../../src/worker/reference_engine.ts";

const engine = await ReferenceEngine.load(fileURLToPath(new URL("../../../models/tiny.gguf", import.meta.url)));

/** Metadata of models/tiny.gguf, as a worker gets it from its engine. */
export const metadata = engine.metadata;
await engine.close();
