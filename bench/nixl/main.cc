// `nixl_bench CASE`: the numbers of one case of the suite on standard output (suite.mjs).
#include <cstring>
#include <filesystem>

#include "nixl/rig.h"

namespace {

// What a reader starts of itself: `move:PIECE:DIRECTORY`, `fixed` or `staged`.
int Hold(const std::string& argument) {
  if (argument.starts_with("move:")) return kvt::bench::HoldMoves(argument.substr(5));
  if (argument == "fixed") return kvt::bench::HoldFixedCost();
  return argument == "staged" ? kvt::bench::HoldStaged() : 1;
}

int MeasureMoves() {
  char directory[] = "/tmp/kvt-bench-XXXXXX";
  if (mkdtemp(directory) == nullptr) return 1;
  kvt::bench::MeasureMoves(directory);
  std::filesystem::remove_all(directory);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "--holder") == 0) return Hold(argv[2]);
  const std::string name = argc == 2 ? argv[1] : "";
  if (name == "move") return MeasureMoves();
  if (name == "fixed") kvt::bench::MeasureFixedCost();
  if (name == "staged") kvt::bench::MeasureStaged();
  return 0;
}
