import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

const SOURCE = `
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* One post a FIFO: it takes the file, so that no other stops there, and waits until somebody opens it for writing. */
static void wait_at(const char* file) {
  char taken[4096];
  if (file == NULL) return;
  snprintf(taken, sizeof taken, "%s.%d", file, (int)getpid());
  if (rename(file, taken) != 0) return;
  int fd = open(taken, O_RDONLY);
  if (fd >= 0) close(fd);
}

/* Memory of this size can't be registered, as where it may not be locked. */
int nixl_capi_reg_dlist_add_desc(void* list, unsigned long address, unsigned long bytes, unsigned long device, const void* meta, unsigned long meta_bytes) {
  static int (*real)(void*, unsigned long, unsigned long, unsigned long, const void*, unsigned long);
  const char* refused = getenv("KVT_TEST_REFUSE_BYTES");
  if (real == NULL) real = (int (*)(void*, unsigned long, unsigned long, unsigned long, const void*, unsigned long))dlsym(RTLD_NEXT, "nixl_capi_reg_dlist_add_desc");
  if (refused != NULL && bytes == strtoul(refused, NULL, 10)) return -2;
  return real(list, address, bytes, device, meta, meta_bytes);
}

int nixl_capi_post_xfer_req(void* agent, void* request, void* options) {
  static int (*real)(void*, void*, void*);
  if (real == NULL) real = (int (*)(void*, void*, void*))dlsym(RTLD_NEXT, "nixl_capi_post_xfer_req");
  wait_at(getenv("KVT_TEST_WEDGE"));
  return real(agent, request, options);
}
`;

/**
 * The real NIXL behind a library that refuses to register so many bytes as KVT_TEST_REFUSE_BYTES says, and in which a post stops for as long as a test wants: once for each FIFO that lies where KVT_TEST_WEDGE says. The
 * post renames it, with its process id behind, and comes back when that is opened for writing.
 */
export function shimNixl(library: string, folder: string): string {
  mkdirSync(folder, { recursive: true });
  const real = dirname(library);
  // Its version is read from the library beside it.
  for (const name of readdirSync(real).filter((file) => file.startsWith("libnixl_common"))) {
    symlinkSync(join(real, name), join(folder, name));
  }
  const shim = join(folder, "libnixl_capi_shim.so");
  const source = join(folder, "shim.c");
  writeFileSync(source, SOURCE);
  const link = [
    "-Wl,--no-as-needed",
    `-L${real}`,
    "-l:libnixl_capi.so",
    `-Wl,-rpath,${real}`,
    "-Wl,--allow-shlib-undefined",
  ];
  execFileSync("c++", ["-x", "c", "-shared", "-fPIC", source, "-x", "none", "-o", shim, ...link, "-ldl"]);
  return shim;
}
