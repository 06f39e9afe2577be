#include "addon/pool_span_external.h"

#include <utility>

namespace kvt {
namespace {

constexpr napi_type_tag kPoolSpanTag = {0x6b76742d706f6f6cULL, 0x2d7370616e2d3031ULL};

using Held = std::shared_ptr<PoolSpan>;

}  // namespace

Napi::Value PoolSpanToExternal(Napi::Env env, std::shared_ptr<PoolSpan> span) {
  auto external =
      Napi::External<Held>::New(env, new Held(std::move(span)), [](Napi::Env, Held* held) { delete held; });
  if (napi_type_tag_object(env, external, &kPoolSpanTag) != napi_ok) return env.Undefined();
  return external;
}

std::shared_ptr<PoolSpan> PoolSpanOf(const Napi::Value& value) {
  if (!value.IsExternal()) return nullptr;
  bool tagged = false;
  if (napi_check_object_type_tag(value.Env(), value, &kPoolSpanTag, &tagged) != napi_ok || !tagged) {
    return nullptr;
  }
  return *value.As<Napi::External<Held>>().Data();
}

}  // namespace kvt
