#include "paths/path_set.h"

#include <algorithm>
#include <utility>

#include "memory/byte_stream.h"

namespace kvt {
namespace {

constexpr uint32_t kMagic = 0x3153564b;  // "KVS1", little-endian
constexpr size_t kSectionsMax = 8;

std::optional<std::unordered_map<int, std::vector<uint8_t>>> ReadSections(std::span<const uint8_t> bytes) {
  ByteReader in(bytes);
  if (in.Number<uint32_t>() != kMagic) return std::nullopt;
  const size_t count = in.Number<uint8_t>();
  std::unordered_map<int, std::vector<uint8_t>> sections;
  for (size_t at = 0; at < count && at < kSectionsMax; ++at) {
    const int kind = in.Number<uint8_t>();
    sections[kind] = in.Blob();
  }
  if (!in.Finished()) return std::nullopt;
  return sections;
}

}  // namespace

PathSet::PathSet(std::vector<Entry> entries) : entries_(std::move(entries)) {}

std::vector<uint8_t> PathSet::Descriptor() const {
  ByteWriter out;
  out.Number(kMagic);
  out.Number(static_cast<uint8_t>(entries_.size()));
  for (const Entry& entry : entries_) {
    out.Number(static_cast<uint8_t>(entry.kind));
    out.Blob(entry.descriptor);
  }
  return std::move(out.bytes);
}

void PathSet::Know(PeerKey key, std::shared_ptr<const PeerLife> life) { lives_[key] = std::move(life); }

void PathSet::Reach(PeerKey key, std::vector<uint8_t> descriptor, BootNanos deadline) {
  auto sections = ReadSections(descriptor);
  auto known = lives_.extract(key);
  PathEvent refused;
  refused.kind = PathEvent::Kind::kReached;
  refused.key = key;
  refused.reached = sections ? ReachStatus::kNoCommonPath : ReachStatus::kBadDescriptor;
  if (sections) {
    Peer& peer = peers_[key];
    peer.sections = std::move(*sections);
    peer.deadline = deadline;
    if (known) peer.life = std::move(known.mapped());
    if (TryFrom(key, &peer, 0)) return;
    peers_.erase(key);
  }
  refused_.push_back(refused);
}

bool PathSet::TryFrom(PeerKey key, Peer* peer, size_t from) {
  for (size_t at = from; at < entries_.size(); ++at) {
    const auto section = peer->sections.find(static_cast<int>(entries_[at].kind));
    if (section == peer->sections.end()) continue;
    peer->entry = at;
    entries_[at].path->Know(key, peer->life);
    entries_[at].path->Reach(key, section->second, peer->deadline);
    return true;
  }
  return false;
}

std::optional<double> PathSet::CostMicros(PeerKey key, uint64_t bytes, uint64_t piece_bytes) const {
  const auto peer = peers_.find(key);
  if (peer == peers_.end()) return std::nullopt;
  return entries_[peer->second.entry].path->CostMicros(key, bytes, piece_bytes);
}

Path::Posted PathSet::Post(std::unique_ptr<Transfer> transfer) {
  const auto peer = peers_.find(transfer->peer);
  if (peer == peers_.end() || !peer->second.reached) return Posted::kNoPeer;
  const JobKey job = transfer->job;
  const Posted posted = entries_[peer->second.entry].path->Post(std::move(transfer));
  if (posted == Posted::kTaken) jobs_[job] = peer->second.entry;
  return posted;
}

void PathSet::Cancel(JobKey job) {
  const auto found = jobs_.find(job);
  if (found != jobs_.end()) entries_[found->second].path->Cancel(job);
}

void PathSet::Poll(std::vector<PathEvent>* events) {
  for (const PathEvent& event : std::exchange(refused_, {})) events->push_back(event);
  std::vector<PathEvent> seen;
  for (Entry& entry : entries_) entry.path->Poll(&seen);
  const bool renewed = std::any_of(seen.begin(), seen.end(), [](const PathEvent& event) {
    return event.kind == PathEvent::Kind::kRenewed;
  });
  for (Entry& entry : entries_) {
    std::vector<uint8_t> now = renewed ? entry.path->Descriptor() : std::vector<uint8_t>();
    if (!now.empty()) entry.descriptor = std::move(now);
  }
  for (const PathEvent& event : seen) {
    switch (event.kind) {
      case PathEvent::Kind::kReached:
        OnReached(event, events);
        break;
      case PathEvent::Kind::kPeerDead:
      case PathEvent::Kind::kStalled:
      case PathEvent::Kind::kFailed:
      case PathEvent::Kind::kRenewed:
        events->push_back(event);
        break;
      case PathEvent::Kind::kQuiet:
        jobs_.erase(event.key);
        events->push_back(event);
        break;
    }
  }
}

void PathSet::OnReached(const PathEvent& event, std::vector<PathEvent>* events) {
  const auto found = peers_.find(event.key);
  if (found == peers_.end()) return;
  Peer& peer = found->second;
  if (event.reached == ReachStatus::kOk) {
    peer.reached = true;
  } else {
    const bool more = !peer.released && event.reached != ReachStatus::kReleased;
    if (more && TryFrom(event.key, &peer, peer.entry + 1)) return;
    peers_.erase(found);
  }
  events->push_back(event);
}

void PathSet::Release(PeerKey key) {
  const auto found = peers_.find(key);
  if (found == peers_.end()) return;
  entries_[found->second.entry].path->Release(key);
  if (found->second.reached) {
    peers_.erase(found);
  } else {
    found->second.released = true;
  }
}

void PathSet::Grant(LeaseKey lease, const StagedGrant& grant) {
  for (Entry& entry : entries_) entry.path->Grant(lease, grant);
}

void PathSet::EndLease(LeaseKey lease) {
  for (Entry& entry : entries_) entry.path->EndLease(lease);
}

void PathSet::Serve(bool leases_out) {
  for (Entry& entry : entries_) entry.path->Serve(leases_out);
}

void PathSet::EndBy(BootNanos deadline) {
  for (Entry& entry : entries_) entry.path->EndBy(deadline);
}

BootNanos PathSet::Soon() const {
  BootNanos soon = 0;
  for (const Entry& entry : entries_) soon = std::max(soon, entry.path->Soon());
  return soon;
}

BootNanos PathSet::Next() const {
  BootNanos next = kNever;
  for (const Entry& entry : entries_) next = std::min(next, entry.path->Next());
  return next;
}

}  // namespace kvt
