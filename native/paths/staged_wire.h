#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "layout/plan.h"
#include "paths/path.h"

namespace kvt {

// What the two agents of a staged transfer tell each other, as NIXL notifications. NIXL says whose agent a
// notification is of, and an agent's name is of one process start: that is the epoch. Jobs are numbered by
// the receiver and never twice, chunks of a job from 0 on.
struct StagedMessage {
  // R>S, before anything else and now and then: how to tell the receiver something. A NIXL descriptor.
  struct Introduce {
    std::vector<uint8_t> descriptor;
  };
  // S>R: that worked.
  struct Introduced {};
  // R>S: the chunks of these tokens, please.
  struct Want {
    uint64_t job = 0;
    Ticket ticket{};
    Tokens tokens;
    bool replicated = true;
  };
  // S>R: there will be none.
  struct Refused {
    uint64_t job = 0;
  };
  // S>R: tokens [from, to) lie in a slot.
  struct Chunk {
    uint64_t job = 0;
    uint32_t n = 0;
    uint32_t slot = 0;
    uint64_t from = 0;
    uint64_t to = 0;
  };
  // R>S, attached to the read: the slot of that chunk is needed no more.
  struct ChunkDone {
    uint64_t job = 0;
    uint32_t n = 0;
  };
  // R>S: no more chunks of that job, and none of its slots is needed.
  struct Stop {
    uint64_t job = 0;
  };
  // R>S: it will not come back soon.
  struct Leave {};

  using Any = std::variant<Introduce, Introduced, Want, Refused, Chunk, ChunkDone, Stop, Leave>;
};

std::vector<uint8_t> EncodeStaged(const StagedMessage::Any& message);
// Nothing when the bytes are not exactly those of a message. What they ask for is judged elsewhere.
std::optional<StagedMessage::Any> DecodeStaged(std::span<const uint8_t> bytes);

}  // namespace kvt
