#include "memory/socket_directory.h"

#include <dirent.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

namespace kvt {
namespace {

constexpr const char* kUnfinishedSuffix = ".new";

Error Refused(const std::string& directory, const std::string& why) {
  return {ErrorCode::kSocketDirRefused, "socket directory " + directory + " " + why};
}

bool FillAddress(const std::string& path, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  if (path.size() >= sizeof address->sun_path) {
    errno = ENAMETOOLONG;
    return false;
  }
  memcpy(address->sun_path, path.data(), path.size());
  return true;
}

// Sockets of this process that exit() has to unlink. Never destroyed: other threads run on while exit()
// works.
struct OpenSockets {
  std::mutex mutex;
  std::set<std::string> paths;
  pid_t owner = getpid();
};

OpenSockets& Sockets() {
  static OpenSockets& sockets = *new OpenSockets;
  return sockets;
}

void UnlinkAtExit() {
  OpenSockets& sockets = Sockets();
  // A forked child that exits must leave its parent's alone.
  if (sockets.owner != getpid() || !sockets.mutex.try_lock()) return;
  for (const std::string& path : sockets.paths) unlink(path.c_str());
  sockets.mutex.unlock();
}

void RememberSocket(const std::string& path) {
  static const bool registered = std::atexit(UnlinkAtExit) == 0;
  if (!registered) return;
  OpenSockets& sockets = Sockets();
  const std::lock_guard lock(sockets.mutex);
  sockets.paths.insert(path);
}

FileDescriptor NewSocket() {
  return FileDescriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

bool MakeParents(const std::string& directory) {
  for (size_t slash = directory.find('/', 1); slash != std::string::npos;
       slash = directory.find('/', slash + 1)) {
    if (mkdir(directory.substr(0, slash).c_str(), 0700) != 0 && errno != EEXIST) return false;
  }
  return mkdir(directory.c_str(), 0700) == 0 || errno == EEXIST;
}

}  // namespace

Result<bool> PrepareSocketDirectory(const std::string& directory) {
  if (!MakeParents(directory)) return Refused(directory, ErrnoText("can't be made"));
  struct stat status {};
  // lstat: a link would let its owner swap what we have checked.
  if (lstat(directory.c_str(), &status) != 0) return Refused(directory, ErrnoText("can't be read"));
  if (!S_ISDIR(status.st_mode)) return Refused(directory, "is not a directory; name another one");
  if (status.st_uid != geteuid()) {
    return Refused(directory, "belongs to uid " + std::to_string(status.st_uid) + ", this process is uid " +
                                  std::to_string(geteuid()) + "; set KVT_SOCKET_DIR to one of your own");
  }
  if ((status.st_mode & 077) != 0) {
    return Refused(directory, "is open to other users; run chmod 700 " + directory);
  }
  return true;
}

Result<FileDescriptor> ListenIn(const std::string& directory, const std::string& name, int backlog) {
  const std::string path = directory + "/" + name;
  const std::string unfinished = path + kUnfinishedSuffix;
  sockaddr_un address{};
  if (!FillAddress(unfinished, &address)) {
    return Refused(directory, "is too long: a socket's path has at most " +
                                  std::to_string(sizeof address.sun_path - 1) +
                                  " bytes; set KVT_SOCKET_DIR to a shorter one");
  }
  FileDescriptor listener = NewSocket();
  if (!listener.ok()) return Refused(directory, ErrnoText("can't be used, no socket"));
  if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Refused(directory, ErrnoText("can't hold the socket " + name));
  }
  if (listen(listener.get(), backlog) != 0 || rename(unfinished.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(unfinished.c_str());
    return Refused(directory, ErrnoText("can't hold the socket " + name, error));
  }
  RememberSocket(path);
  return listener;
}

void RemoveSocket(const std::string& path) {
  unlink(path.c_str());
  OpenSockets& sockets = Sockets();
  const std::lock_guard lock(sockets.mutex);
  sockets.paths.erase(path);
}

FileDescriptor ConnectTo(const std::string& path) {
  sockaddr_un address{};
  if (!FillAddress(path, &address)) return {};
  FileDescriptor connection = NewSocket();
  if (!connection.ok()) return {};
  if (connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    return connection;
  }
  const int error = errno;
  connection.Reset();
  errno = error;
  return {};
}

void RemoveStaleSockets(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(directory.c_str()), closedir);
  if (!folder) return;
  std::vector<std::string> paths;
  while (const dirent* entry = readdir(folder.get())) {
    const std::string name = entry->d_name;
    // One that is not finished may be between bind and listen in a live process, so it is left alone.
    if (name.starts_with(kSocketPrefix) && !name.ends_with(kUnfinishedSuffix)) {
      paths.push_back(directory + "/" + name);
    }
  }
  for (const std::string& path : paths) {
    const FileDescriptor connection = ConnectTo(path);
    if (!connection.ok() && errno == ECONNREFUSED) unlink(path.c_str());
  }
}

}  // namespace kvt
