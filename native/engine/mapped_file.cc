#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/gguf.h"

namespace kvt::engine {

Result<MappedFile> MappedFile::Open(const std::string& path) {
  // Without O_NONBLOCK the open of a FIFO would wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return Failure{Fault::kUnreadable, std::strerror(errno)};
  struct stat status {};
  if (fstat(fd, &status) != 0) {
    const int error = errno;
    close(fd);
    return Failure{Fault::kUnreadable, std::strerror(error)};
  }
  if (!S_ISREG(status.st_mode)) {
    close(fd);
    return Failure{Fault::kUnreadable, "it is no regular file"};
  }
  if (status.st_size == 0) {
    close(fd);
    return Failure{Fault::kInvalid, "the file is empty"};
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  close(fd);
  if (data == MAP_FAILED) return Failure{Fault::kUnreadable, std::string("mmap: ") + std::strerror(error)};
  return MappedFile(static_cast<const uint8_t*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

}  // namespace kvt::engine
