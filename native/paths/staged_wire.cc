#include "paths/staged_wire.h"

#include "memory/byte_stream.h"

namespace kvt {
namespace {

constexpr uint32_t kMagic = 0x3153544b;  // "KTS1", little-endian
using M = StagedMessage;

void Write(const M::Introduce& message, ByteWriter* out) { out->Blob(message.descriptor); }
void Write(const M::Introduced&, ByteWriter*) {}
void Write(const M::Want& message, ByteWriter* out) {
  out->Number(message.job);
  out->Raw(message.ticket);
  out->Number(message.tokens.from);
  out->Number(message.tokens.to);
  out->Number(message.tokens.sequence);
  out->Number(static_cast<uint8_t>(message.replicated));
}
void Write(const M::Refused& message, ByteWriter* out) { out->Number(message.job); }
void Write(const M::Chunk& message, ByteWriter* out) {
  out->Number(message.job);
  out->Number(message.n);
  out->Number(message.slot);
  out->Number(message.from);
  out->Number(message.to);
}
void Write(const M::ChunkDone& message, ByteWriter* out) {
  out->Number(message.job);
  out->Number(message.n);
}
void Write(const M::Stop& message, ByteWriter* out) { out->Number(message.job); }
void Write(const M::Leave&, ByteWriter*) {}

void Read(ByteReader* in, M::Introduce* message) { message->descriptor = in->Blob(); }
void Read(ByteReader*, M::Introduced*) {}
void Read(ByteReader* in, M::Want* message) {
  message->job = in->Number<uint64_t>();
  message->ticket = in->Raw<std::tuple_size_v<Ticket>>();
  message->tokens.from = in->Number<uint64_t>();
  message->tokens.to = in->Number<uint64_t>();
  message->tokens.sequence = in->Number<uint64_t>();
  message->replicated = in->Number<uint8_t>() != 0;
}
void Read(ByteReader* in, M::Refused* message) { message->job = in->Number<uint64_t>(); }
void Read(ByteReader* in, M::Chunk* message) {
  message->job = in->Number<uint64_t>();
  message->n = in->Number<uint32_t>();
  message->slot = in->Number<uint32_t>();
  message->from = in->Number<uint64_t>();
  message->to = in->Number<uint64_t>();
}
void Read(ByteReader* in, M::ChunkDone* message) {
  message->job = in->Number<uint64_t>();
  message->n = in->Number<uint32_t>();
}
void Read(ByteReader* in, M::Stop* message) { message->job = in->Number<uint64_t>(); }
void Read(ByteReader*, M::Leave*) {}

// The alternative of that number, read from `in`.
template <size_t At = 0>
std::optional<M::Any> ReadAt(size_t kind, ByteReader* in) {
  if constexpr (At < std::variant_size_v<M::Any>) {
    if (kind != At) return ReadAt<At + 1>(kind, in);
    std::variant_alternative_t<At, M::Any> message;
    Read(in, &message);
    return message;
  } else {
    return std::nullopt;
  }
}

}  // namespace

std::vector<uint8_t> EncodeStaged(const M::Any& message) {
  ByteWriter out;
  out.Number(kMagic);
  out.Number(static_cast<uint8_t>(message.index()));
  std::visit([&out](const auto& one) { Write(one, &out); }, message);
  return std::move(out.bytes);
}

std::optional<M::Any> DecodeStaged(std::span<const uint8_t> bytes) {
  ByteReader in(bytes);
  if (in.Number<uint32_t>() != kMagic) return std::nullopt;
  auto message = ReadAt(in.Number<uint8_t>(), &in);
  if (!message || !in.Finished()) return std::nullopt;
  return message;
}

}  // namespace kvt
