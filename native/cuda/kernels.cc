#include "cuda/kernels.h"

#include <optional>

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
    result = kernels->LoadForm(image.gather, image.digest);
    if (result == kSuccess) {
      kernels->form_ = image.name;
      break;
    }
    refused += (refused.empty() ? "" : "; ") + cuda.Failed(image.name + ", cuModuleLoadData", result).why;
  }
  if (kernels->form_.empty()) {
    return Error{ErrorCode::kCudaFailed, "no form of the kernels runs on " + facts.name + ": " + refused};
  }
  const auto find = [&](CUfunction* function, CUmodule module, const char* name) -> std::optional<Error> {
    result = cuda->cuModuleGetFunction(function, module, name);
    if (result == kSuccess) return std::nullopt;
    return cuda.Failed(std::string("cuModuleGetFunction of ") + name, result);
  };
  if (auto failed = find(&kernels->gather_, kernels->gather_module_, "kvt_gather")) return *failed;
  if (auto failed = find(&kernels->digest_sums_, kernels->digest_module_, "kvt_digest_sums")) return *failed;
  if (auto failed = find(&kernels->digest_ends_, kernels->digest_module_, "kvt_digest_ends")) return *failed;
  return std::shared_ptr<const Kernels>(std::move(kernels));
}

CUresult Kernels::LoadForm(const void* gather, const void* digest) {
  const Driver& cuda = context_->cuda();
  CUresult result = cuda->cuModuleLoadData(&gather_module_, gather);
  if (result != kSuccess) {
    gather_module_ = nullptr;
    return result;
  }
  result = cuda->cuModuleLoadData(&digest_module_, digest);
  if (result == kSuccess) return result;
  digest_module_ = nullptr;
  Unload();
  return result;
}

void Kernels::Unload() {
  for (CUmodule* module : {&digest_module_, &gather_module_}) {
    if (*module != nullptr) context_->cuda()->cuModuleUnload(*module);
    *module = nullptr;
  }
}

Kernels::~Kernels() {
  context_->MakeCurrent();
  Unload();
}

}  // namespace kvt::cuda
