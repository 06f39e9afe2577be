#pragma once

#include <memory>

#include "addon/napi_setup.h"
#include "memory/pool_span.h"

namespace kvt {

// A pool as the addon's engine gets it: a type-tagged external, so that a foreign external is refused.
Napi::Value PoolSpanToExternal(Napi::Env env, std::shared_ptr<PoolSpan> span);

// Null when `value` is no span of ours. The holder of the span keeps the mapping alive through its `owner`.
std::shared_ptr<PoolSpan> PoolSpanOf(const Napi::Value& value);

}  // namespace kvt
