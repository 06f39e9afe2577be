// What CUDA finds here, as JSON.
import { loadNative } from "../../dist/native/loader.js";

console.log(JSON.stringify(loadNative().probeCuda()));
process.exit(0);
