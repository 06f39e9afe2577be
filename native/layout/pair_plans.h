#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "layout/plan.h"

namespace kvt {

// What a rank reads of another one. What has no heads lies in several ranks alike and is read from one of
// them: of the others only the rest.
struct PairPlans {
  std::shared_ptr<const Plan> all;
  std::shared_ptr<const Plan> without_replicated;

  // As Plan::Compile.
  static std::optional<PairPlans> Compile(const SourceGeometry& source, const TargetGeometry& target,
                                          std::string* why) {
    auto all = Plan::Compile(source, target, why);
    auto without = Plan::Compile(source, target, why, false);
    if (!all || !without) return std::nullopt;
    return PairPlans{std::make_shared<const Plan>(std::move(*all)),
                     std::make_shared<const Plan>(std::move(*without))};
  }

  const std::shared_ptr<const Plan>& For(bool replicated) const {
    return replicated ? all : without_replicated;
  }
};

}  // namespace kvt
