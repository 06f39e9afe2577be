#pragma once

#include "addon/arguments.h"
#include "addon/napi_setup.h"
#include "dataplane/data_plane.h"

namespace kvt {

// Reads NativeDataPlaneOptions. On a bad one `arguments` holds the failure and the result means nothing.
DataPlane::Options ReadPlaneOptions(Arguments* arguments, const Napi::Value& value);

}  // namespace kvt
