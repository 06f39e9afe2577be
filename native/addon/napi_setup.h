#pragma once

// The one include of napi.h: every file of the addon sees it with the same safety defines. C++ exceptions of
// node-addon-api stay off, because none may cross N-API; a failed call leaves a pending JS exception instead.
#define NAPI_DISABLE_CPP_EXCEPTIONS
#define NODE_ADDON_API_DISABLE_DEPRECATED
// A worker thread that is being terminated refuses every throw: without this, that would end the process.
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
#include <napi.h>
