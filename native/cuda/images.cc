#include "cuda/images.h"

#include <vector>

// The files lie beside the sources, so that the addon is built without nvcc; a zero byte ends the text of the
// PTX. KVT_CUDA_IMAGES is their folder.
#define KVT_EMBED(symbol, file)              \
  asm(".pushsection .rodata\n"               \
      ".balign 64\n"                         \
      ".global " #symbol                     \
      "\n"                                   \
      ".hidden " #symbol                     \
      "\n"                                   \
      ".type " #symbol ", @object\n" #symbol \
      ":\n"                                  \
      ".incbin \"" KVT_CUDA_IMAGES "/" file  \
      "\"\n"                                 \
      ".byte 0\n"                            \
      ".size " #symbol ", . - " #symbol      \
      "\n"                                   \
      ".popsection\n");                      \
  extern "C" __attribute__((visibility("hidden"))) const unsigned char symbol[]

KVT_EMBED(kvt_gather_sm_80, "gather.sm_80.cubin");
KVT_EMBED(kvt_gather_sm_86, "gather.sm_86.cubin");
KVT_EMBED(kvt_gather_sm_89, "gather.sm_89.cubin");
KVT_EMBED(kvt_gather_sm_90, "gather.sm_90.cubin");
KVT_EMBED(kvt_gather_sm_100, "gather.sm_100.cubin");
KVT_EMBED(kvt_gather_sm_120, "gather.sm_120.cubin");
KVT_EMBED(kvt_gather_ptx, "gather.ptx");

namespace kvt::cuda {

std::span<const Image> AllImages() {
  static const std::vector<Image>& images = *new std::vector<Image>{
      {"cubin sm_120", 12, 0, kvt_gather_sm_120},
      {"cubin sm_100", 10, 0, kvt_gather_sm_100},
      {"cubin sm_90", 9, 0, kvt_gather_sm_90},
      {"cubin sm_89", 8, 9, kvt_gather_sm_89},
      {"cubin sm_86", 8, 6, kvt_gather_sm_86},
      {"cubin sm_80", 8, 0, kvt_gather_sm_80},
      {"PTX", 0, 0, kvt_gather_ptx},
  };
  return images;
}

bool RunsOn(const Image& image, int major, int minor) {
  return image.major == 0 || (image.major == major && image.minor <= minor);
}

}  // namespace kvt::cuda
