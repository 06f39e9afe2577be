#pragma once

#include <memory>
#include <string>

#include "cuda/device.h"

namespace kvt::cuda {

// The kernels, loaded into a context.
class Kernels {
 public:
  // Blocks for some milliseconds, seconds where the driver compiles them. The first form that the GPU and its
  // driver take; an error names what each form was refused with.
  static Result<std::shared_ptr<const Kernels>> Load(std::shared_ptr<const Context> context);
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  CUfunction gather() const { return gather_; }
  CUfunction digest_sums() const { return digest_sums_; }
  CUfunction digest_ends() const { return digest_ends_; }
  // "cubin sm_90" or "PTX".
  const std::string& form() const { return form_; }

 private:
  explicit Kernels(std::shared_ptr<const Context> context) : context_(std::move(context)) {}
  CUresult LoadForm(const void* gather, const void* digest);
  void Unload();

  std::shared_ptr<const Context> context_;
  CUmodule gather_module_ = nullptr;
  CUmodule digest_module_ = nullptr;
  CUfunction gather_ = nullptr;
  CUfunction digest_sums_ = nullptr;
  CUfunction digest_ends_ = nullptr;
  std::string form_;
};

}  // namespace kvt::cuda
