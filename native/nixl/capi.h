#pragma once

#include <cstddef>
#include <cstdint>

// NIXL's C API as libnixl_capi.so of 0.10.1 to 1.5.1 has it, declared by us: no header of NIXL is included
// and nothing is linked, so one binary serves every version. Sizes and offsets were read from those
// libraries.
namespace kvt::nixl {

// Each kind of handle has a type of its own, as in NIXL, so that two can't be mistaken for each other.
struct CAgent;
struct CParams;
struct CParamsIterator;
struct CMemoryList;
struct CStringList;
struct CBackend;
struct COptions;
struct CTransferList;
struct CRegistrationList;
struct CRemoteList;
struct CPreparedList;
struct CRequest;
struct CNotifications;
struct CQueryList;
struct CMemoryView;

// What every call answers, but for is_stub.
using CStatus = int32_t;

enum class Status : CStatus {
  kSuccess = 0,
  kInProgress = 1,
  kInvalidParam = -1,
  kBackend = -2,
  kInvalidState = -3,
  kException = -4,
  kNoTelemetry = -5,
  kNotFound = -6,  // from 1.5 on; older ones say kBackend
};

enum class MemoryKind : int32_t { kDram = 0, kVram = 1 };
enum class Operation : int32_t { kRead = 0, kWrite = 1 };
enum class ThreadSync : int32_t { kNone = 0, kStrict = 1, kReadWrite = 2 };

struct CAgentConfig {
  bool enable_progress_thread = false;
  bool enable_listen_thread = false;
  int32_t listen_port = 0;
  ThreadSync thread_sync = ThreadSync::kNone;
  uint32_t num_workers = 1;  // ignored since 1.0.0
  uint64_t progress_delay_us = 0;
  uint64_t listen_delay_us = 100'000;
  bool capture_telemetry = false;
};
static_assert(sizeof(CAgentConfig) == 40 && offsetof(CAgentConfig, listen_port) == 4 &&
              offsetof(CAgentConfig, thread_sync) == 8 && offsetof(CAgentConfig, num_workers) == 12 &&
              offsetof(CAgentConfig, progress_delay_us) == 16 &&
              offsetof(CAgentConfig, listen_delay_us) == 24 &&
              offsetof(CAgentConfig, capture_telemetry) == 32);

struct CTelemetry {
  uint64_t start_us = 0;  // CLOCK_MONOTONIC, whatever NIXL's header says
  uint64_t post_us = 0;
  uint64_t transfer_us = 0;
  uint64_t total_bytes = 0;
  uint64_t descriptors = 0;
};
static_assert(sizeof(CTelemetry) == 40);

}  // namespace kvt::nixl
