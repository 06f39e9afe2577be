#pragma once

#include <cstdint>

#include "memory/pool_descriptor.h"

namespace kvt {

// The two messages of the fd exchange, one packet each, between processes of one host: native byte order.
struct ExchangeRequest {
  uint32_t magic = 0;
  uint32_t version = 0;
  uint64_t epoch = 0;
  Nonce nonce{};
};

struct ExchangeReply {
  uint32_t magic = 0;
  uint32_t accepted = 0;  // 1: the pool's file descriptor comes with this packet
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

constexpr uint32_t kExchangeMagic = 0x3146564b;  // "KVF1"
constexpr uint32_t kExchangeVersion = 1;

}  // namespace kvt
