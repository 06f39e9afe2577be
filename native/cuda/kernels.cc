#include "cuda/kernels.h"

#include "cuda/images.h"

namespace kvt::cuda {

Result<std::shared_ptr<const Kernels>> Kernels::Load(std::shared_ptr<const Context> context) {
  const Driver& cuda = context->cuda();
  const DeviceFacts& facts = context->facts();
  std::shared_ptr<Kernels> kernels(new Kernels(std::move(context)));
  CUresult result = kernels->context_->MakeCurrent();
  if (result != kSuccess) return cuda.Failed("cuCtxSetCurrent", result);
  std::string refused;
  for (const Image& image : AllImages()) {
    if (!RunsOn(image, facts.major, facts.minor)) continue;
    result = cuda->cuModuleLoadData(&kernels->module_, image.data);
    if (result == kSuccess) {
      kernels->form_ = image.name;
      break;
    }
    kernels->module_ = nullptr;
    refused += (refused.empty() ? "" : "; ") + cuda.Failed(image.name + ", cuModuleLoadData", result).why;
  }
  if (kernels->module_ == nullptr) {
    return Error{ErrorCode::kCudaFailed, "no form of the kernels runs on " + facts.name + ": " + refused};
  }
  result = cuda->cuModuleGetFunction(&kernels->gather_, kernels->module_, "kvt_gather");
  if (result != kSuccess) return cuda.Failed("cuModuleGetFunction of kvt_gather", result);
  return std::shared_ptr<const Kernels>(std::move(kernels));
}

Kernels::~Kernels() {
  if (module_ == nullptr) return;
  context_->MakeCurrent();
  context_->cuda()->cuModuleUnload(module_);
}

}  // namespace kvt::cuda
