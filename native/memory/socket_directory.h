#pragma once

#include <string>

#include "memory/file_descriptor.h"
#include "memory/result.h"

namespace kvt {

// Makes `directory` (0700) when it is missing, and refuses one that others could use: not a directory,
// another owner, or open to group or others. Parents are made too.
Result<bool> PrepareSocketDirectory(const std::string& directory);

// A listening unix socket in the directory. The file appears under `name` only once it listens, so a file
// that refuses connections belongs to nobody alive, in whatever PID namespace.
Result<FileDescriptor> ListenIn(const std::string& directory, const std::string& name, int backlog);

// Unlinks what ListenIn made. Until then the file goes when the process ends by exit(), where no destructor
// runs; one that is killed leaves it to RemoveStaleSockets().
void RemoveSocket(const std::string& path);

// Removes our sockets that nobody listens on any more (processes that were killed).
void RemoveStaleSockets(const std::string& directory);

// Every file that ListenIn makes starts like this; nothing else in the directory is touched.
constexpr const char* kSocketPrefix = "kvt-pool-";

// Connects without blocking: a descriptor, or errno (EAGAIN: the listener's queue is full).
FileDescriptor ConnectTo(const std::string& path);

}  // namespace kvt
