#pragma once

#include <optional>

#include "layout/geometry.h"

namespace kvt {

// How the bytes of one pair of ranks lie in a staging slot: the layers and heads that both hold and nothing
// else, block after block, each [group][layer][plane][head][token] without gaps. The sender packs by a plan
// from its own geometry to this one, the receiver unpacks by a plan from this one to its own, and both work
// it out by themselves. Blocks have as many tokens as the target's, or fewer where a slot holds no whole one.
// Nothing when not even a block of one token fits, or one whose tokens can't be parted (elements a block).
std::optional<Geometry> StagedGeometry(const SourceGeometry& source, const TargetGeometry& target,
                                       uint64_t slot_bytes);

// Bytes of a slot of `tokens` tokens, at least one block of them.
uint64_t StagingSlotBytes(const Geometry& geometry, uint64_t tokens);

}  // namespace kvt
