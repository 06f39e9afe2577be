#pragma once

#include <memory>
#include <string>

#include "cuda/device.h"

namespace kvt::cuda {

// The kernels, loaded into a context.
class Kernels {
 public:
  // The first form that the GPU and its driver take; an error names what each form was refused with.
  static Result<std::shared_ptr<const Kernels>> Load(std::shared_ptr<const Context> context);
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  CUfunction gather() const { return gather_; }
  // "cubin sm_90" or "PTX".
  const std::string& form() const { return form_; }

 private:
  explicit Kernels(std::shared_ptr<const Context> context) : context_(std::move(context)) {}

  std::shared_ptr<const Context> context_;
  CUmodule module_ = nullptr;
  CUfunction gather_ = nullptr;
  std::string form_;
};

}  // namespace kvt::cuda
