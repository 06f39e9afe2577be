// The environment of somebody who has nothing but Node and a compiler.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Variables that bring in what a developer has: headers, folders of the desktop. */
const BROUGHT = /^(npm_config_nodedir|XDG_.*)$/i;
/** HOME without anything in it and a user config of npm that names no headers: nothing may depend on what a developer has there. */
export function bareHome(place) {
  const home = join(place, "home");
  mkdirSync(home, { recursive: true });
  const config = join(place, "user-npmrc");
  writeFileSync(config, "fund=false\naudit=false\n");
  const env = { ...process.env, HOME: home, npm_config_userconfig: config };
  for (const key of Object.keys(env)) if (BROUGHT.test(key)) delete env[key];
  return env;
}
