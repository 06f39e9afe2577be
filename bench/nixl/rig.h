// What the programs of this suite have in common.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "paths/nixl_descriptor.h"
#include "test/nixl_process.h"

namespace kvt::bench {

using namespace kvt::nixl::test;  // NOLINT: programs

inline constexpr uint64_t kMoved = uint64_t{64} << 20;

template <typename T>
T Must(Result<T> result) {
  if (result.ok()) return std::move(result.value());
  std::fprintf(stderr, "%s\n", result.error().why.c_str());
  std::exit(1);
}

inline std::vector<uint32_t> Scattered(uint32_t blocks, size_t count, unsigned seed) {
  std::vector<uint32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(seed));
  table.resize(count);
  return table;
}

inline double GbPerS(BootNanos nanos) { return static_cast<double>(kMoved) / static_cast<double>(nanos); }

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// What somebody does who has NIXL and nothing else.
class Plain {
 public:
  Plain(const NixlDescriptor& far, uint32_t blocks, uint64_t stride, uint64_t piece)
      : buffer_(blocks * piece),
        agent_(Must(nixl::Agent::Open(Must(nixl::Library::Load(LibraryFile())), Options()))) {
    memset(buffer_.data(), 1, buffer_.size());
    memory_ = Must(agent_->Register(nixl::MemoryKind::kDram, {PieceOf(buffer_, 0, buffer_.size())}));
    const std::string name = Must(agent_->LoadRemote(far.metadata));
    std::vector<nixl::Piece> own;
    std::vector<nixl::Piece> others;
    for (uint32_t block = 0; block < blocks; ++block) {
      own.push_back(PieceOf(buffer_, block * piece, piece));
      others.push_back({far.address + block * stride, piece, 0});
    }
    own_ = Must(agent_->Prepare("", nixl::MemoryKind::kDram, own));
    far_ = Must(agent_->Prepare(name, nixl::MemoryKind::kDram, others));
  }

  // From making the request to its end.
  BootNanos Read(const std::vector<uint32_t>& from, const std::vector<uint32_t>& to) {
    const std::vector<int32_t> far(from.begin(), from.end());
    const std::vector<int32_t> own(to.begin(), to.end());
    const BootNanos before = BootNow();
    auto request = Must(agent_->Make(nixl::Operation::kRead, *own_, own, *far_, far, {}));
    if (kvt::nixl::test::Run(request.get()) != nixl::Status::kSuccess) std::exit(1);
    return BootNow() - before;
  }

 private:
  static nixl::AgentOptions Options() {
    nixl::AgentOptions options;
    options.name = "plain";
    return options;
  }

  std::vector<uint8_t> buffer_;
  std::unique_ptr<nixl::Agent> agent_;
  std::unique_ptr<nixl::Registration> memory_;
  std::unique_ptr<nixl::PreparedList> own_;
  std::unique_ptr<nixl::PreparedList> far_;
};

// One program a case: the reader, and with `--holder` the process that is read.
void MeasureMoves(const std::string& directory);
int HoldMoves(const std::string& argument);
void MeasureFixedCost();
int HoldFixedCost();
void MeasureStaged();
int HoldStaged();

}  // namespace kvt::bench
