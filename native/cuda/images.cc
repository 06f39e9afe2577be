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

#define KVT_EMBED_FORM(form, file)              \
  KVT_EMBED(kvt_gather_##form, "gather." file); \
  KVT_EMBED(kvt_digest_##form, "digest." file)

KVT_EMBED_FORM(sm_80, "sm_80.cubin");
KVT_EMBED_FORM(sm_86, "sm_86.cubin");
KVT_EMBED_FORM(sm_89, "sm_89.cubin");
KVT_EMBED_FORM(sm_90, "sm_90.cubin");
KVT_EMBED_FORM(sm_100, "sm_100.cubin");
KVT_EMBED_FORM(sm_120, "sm_120.cubin");
KVT_EMBED_FORM(ptx, "ptx");

namespace kvt::cuda {

std::span<const Image> AllImages() {
  static const std::vector<Image>& images = *new std::vector<Image>{
      {"cubin sm_120", 12, 0, kvt_gather_sm_120, kvt_digest_sm_120},
      {"cubin sm_100", 10, 0, kvt_gather_sm_100, kvt_digest_sm_100},
      {"cubin sm_90", 9, 0, kvt_gather_sm_90, kvt_digest_sm_90},
      {"cubin sm_89", 8, 9, kvt_gather_sm_89, kvt_digest_sm_89},
      {"cubin sm_86", 8, 6, kvt_gather_sm_86, kvt_digest_sm_86},
      {"cubin sm_80", 8, 0, kvt_gather_sm_80, kvt_digest_sm_80},
      {"PTX", 0, 0, kvt_gather_ptx, kvt_digest_ptx},
  };
  return images;
}

bool RunsOn(const Image& image, int major, int minor) {
  return image.major == 0 || (image.major == major && image.minor <= minor);
}

}  // namespace kvt::cuda
