#pragma once

#include <cstddef>
#include <cstdint>

#include "memory/vector_level.h"

// No std:: code in this header: it is compiled into files with AVX-512 switched on, and an inline function of
// theirs must never be the copy that the linker keeps for everyone.
namespace kvt::engine {

// Every kernel works on 16 lanes whatever the machine's registers are, and reduces each output element in one
// order that depends only on its own position: so batch, chunk, tile, thread and block placement can't change
// a bit.
constexpr size_t kLanes = 16;

// y[row][16 * group + lane] (+)= sum over c of x[row][c] * w[group][c][lane], in the order of c.
struct GemmArgs {
  const float* x;  // [rows][columns]
  size_t rows;
  size_t columns;
  const void* w;  // [groups][columns][16], f32 or bf16
  size_t group_begin;
  size_t group_end;
  float* y;        // [rows][stride]
  size_t stride;   // >= outputs
  size_t outputs;  // the last group may be partly used
  bool accumulate;
};

// One query of one head over the positions first .. position of its sequence.
struct AttendArgs {
  const float* query;  // [head_dim]
  float* out;          // [head_dim]
  const uint8_t* pool;
  size_t block_stride;  // all in bytes
  size_t token_stride;
  size_t key_offset;  // of the first token in block 0, for this layer and KV head
  size_t value_offset;
  const uint32_t* table;  // block ids in token order
  size_t tokens_per_block;
  size_t first;
  size_t position;
  size_t head_dim;  // a multiple of 16
  float scale;
  float* scores;  // scratch: position + 1 - first, rounded up to 16 floats
};

struct Kernels {
  void (*gemm_f32)(const GemmArgs&);
  void (*gemm_bf16)(const GemmArgs&);
  void (*attend_f32)(const AttendArgs&);
  void (*attend_bf16)(const AttendArgs&);
  // y = x / sqrt(mean(x^2) + epsilon) * weight; count a multiple of 16
  void (*rms_norm)(const float* x, const float* weight, float* y, size_t count, float epsilon);
  // y = gate / (1 + exp(-gate)) * up; count a multiple of 16
  void (*silu_mul)(const float* gate, const float* up, float* y, size_t count);
};

const Kernels& KernelsFor(VectorLevel level);

// Defined by the files that this machine's architecture compiles.
extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kNeonKernels;

}  // namespace kvt::engine
