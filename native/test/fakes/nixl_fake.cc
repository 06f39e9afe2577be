// Libraries that look like libnixl_capi.so and are not: built three times by CMakeLists.txt, for
// nixl_library_test.cc. KVT_FAKE_IS_STUB is what is_stub answers, KVT_FAKE_MARKER adds the function of a
// later API, KVT_FAKE_ALL exports every function instead of is_stub alone.
#include "nixl/capi_functions.h"

#define KVT_EXPORT extern "C" __attribute__((visibility("default")))

#ifdef KVT_FAKE_ALL
#define KVT_FAKE(since, type, name, parameters) \
  KVT_EXPORT type nixl_capi_##name parameters { return static_cast<type>(KVT_FAKE_IS_STUB); }
namespace kvt::nixl {
KVT_NIXL_FUNCTIONS(KVT_FAKE)
}  // namespace kvt::nixl
#else
KVT_EXPORT bool nixl_capi_is_stub() { return false; }
#endif

#ifdef KVT_FAKE_MARKER
KVT_EXPORT void nixl_capi_mem_free(void*) {}
#endif
