#pragma once

#include <string>

#include "addon/arguments.h"
#include "addon/napi_setup.h"
#include "dataplane/data_plane.h"

namespace kvt {

// Reads NativeDataPlaneOptions. On a bad one `arguments` holds the failure and the result means nothing.
DataPlane::Options ReadPlaneOptions(Arguments* arguments, const Napi::Value& value);

// Reads a NativeGroup; `name` is where it stands.
Group ReadGroup(Arguments* arguments, const Napi::Object& value, const std::string& name);

}  // namespace kvt
