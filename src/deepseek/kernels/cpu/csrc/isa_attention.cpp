// Compiled once per instruction set, with DS_ISA defined as the name of its table. Needs -ffp-contract=off: contracted
// operations would round differently from one compilation to the other.
#include "attention.h"
#include "mla.h"
#include "rotary_kv.h"
#include "sparse.h"

#define DS_JOIN2(a, b) a##b
#define DS_JOIN(a, b) DS_JOIN2(a, b)

namespace deepseek {

const AttentionKernels& DS_JOIN(attention_, DS_ISA)() {
  static constexpr AttentionKernels kernels = {DS_ISA::rotate,        DS_ISA::write_kv,         DS_ISA::rope_and_write,
                                               DS_ISA::attention,     DS_ISA::mla_decode,       DS_ISA::index_kv,
                                               DS_ISA::index_latents, DS_ISA::sparse_attention, DS_ISA::sparse_mla,
                                               DS_ISA::write_latent};
  return kernels;
}

}  // namespace deepseek
