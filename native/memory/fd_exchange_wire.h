#pragma once

#include <cstdint>

#include "memory/pool_descriptor.h"

namespace kvt {

// The two messages of the fd exchange, between processes of one host: native byte order. The reply is a
// packet for each kFilesPerPacket files, which come with it.
struct ExchangeRequest {
  uint32_t magic = 0;
  uint32_t version = 0;
  uint64_t epoch = 0;
  Nonce nonce{};
};

struct ExchangeReply {
  uint32_t magic = 0;
  uint32_t accepted = 0;  // 1: the pool's file descriptors come with this packet and those that follow
  uint64_t files = 0;     // of all packets
  uint64_t bytes = 0;     // of the pool
};

constexpr uint32_t kExchangeMagic = 0x3146564b;  // "KVF1"
constexpr uint32_t kExchangeVersion = 2;
// A message carries 253 at most (SCM_MAX_FD).
constexpr size_t kFilesPerPacket = 128;

}  // namespace kvt
