#pragma once

#include <optional>
#include <string>
#include <vector>

#include "nixl/library.h"

namespace kvt::nixl {

// A library that a plug-in asks for by name and that no NIXL brings with it.
struct LibraryFinding {
  std::string name;     // "libfabric.so.1"
  std::string file;     // empty: it can't be opened
  std::string version;  // "2.5.1", of those that tell it
  std::string why;      // the loader's own words
};

// What of the machine decides whether plug-in LIBFABRIC works.
struct FabricFinding {
  std::vector<LibraryFinding> libraries;
  // Those with reliable datagrams, in libfabric's order, each once: "tcp", "efa".
  std::vector<std::string> providers;
  std::string why;  // there are none; libfabric's own words
};

// Names that an ELF file of this machine asks for (DT_NEEDED); none for any other file.
std::vector<std::string> NeededBy(const std::string& file);
// Opens each library that the plug-in in `file` needs and that lies outside NIXL's own folders, and asks
// libfabric for its providers. Providers run their own code, so it is for a child process.
FabricFinding FindFabric(const Library& library, const std::string& file);

}  // namespace kvt::nixl
