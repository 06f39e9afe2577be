#pragma once

#include <string>
#include <vector>

#include "cuda/device.h"

namespace kvt::cuda {

struct DeviceReport {
  DeviceFacts facts;
  std::vector<int> reaches;  // other GPUs whose memory its kernels can read
  std::string kernels;       // the form that runs, empty: none
  std::string why;           // nothing runs there, or no pool can lie there
};

// What `kvt doctor` says of CUDA. Texts are empty where there is nothing to say.
struct ProbeReport {
  std::string library;
  std::string why;      // CUDA can't be used here at all
  std::string version;  // "13.0": the newest CUDA that the driver knows
  std::vector<DeviceReport> devices;
};

// Opens each GPU and loads the kernels, which takes a second and some 100 MB of it a GPU: for a child
// process.
ProbeReport Probe();

}  // namespace kvt::cuda
