#include "cuda/probe.h"

#include "cuda/device_pool.h"
#include "cuda/kernels.h"

namespace kvt::cuda {
namespace {

std::vector<int> ReachedFrom(const Driver& cuda, int index) {
  std::vector<int> reached;
  CUdevice own = 0;
  if (cuda->cuDeviceGet(&own, index) != kSuccess) return reached;
  for (int other = 0; other < cuda.devices(); ++other) {
    CUdevice far = 0;
    int can = 0;
    if (other == index || cuda->cuDeviceGet(&far, other) != kSuccess) continue;
    if (cuda->cuDeviceCanAccessPeer(&can, own, far) == kSuccess && can != 0) reached.push_back(other);
  }
  return reached;
}

DeviceReport ProbeDevice(const Driver& cuda, const DeviceFacts& facts) {
  DeviceReport report;
  report.facts = facts;
  report.reaches = ReachedFrom(cuda, facts.index);
  auto context = Context::Open(facts.index);
  if (!context.ok()) {
    report.why = context.error().why;
    return report;
  }
  auto kernels = Kernels::Load(context.value());
  if (!kernels.ok()) {
    report.why = kernels.error().why;
    return report;
  }
  report.kernels = kernels.value()->form();
  auto pool = DevicePool::Create(facts.index, 1);
  if (!pool.ok()) report.why = pool.error().why;
  return report;
}

}  // namespace

ProbeReport Probe() {
  ProbeReport report;
  auto loaded = Driver::OfProcess();
  if (!loaded.ok()) {
    report.why = loaded.error().why;
    return report;
  }
  const Driver& cuda = *loaded.value();
  report.library = cuda.library();
  report.version = std::to_string(cuda.version() / 1000) + "." + std::to_string(cuda.version() % 1000 / 10);
  for (int index = 0; index < cuda.devices(); ++index) {
    auto facts = FactsOf(cuda, index);
    if (facts.ok()) {
      report.devices.push_back(ProbeDevice(cuda, facts.value()));
    } else {
      DeviceReport broken;
      broken.facts.index = index;
      broken.why = facts.error().why;
      report.devices.push_back(std::move(broken));
    }
  }
  return report;
}

}  // namespace kvt::cuda
