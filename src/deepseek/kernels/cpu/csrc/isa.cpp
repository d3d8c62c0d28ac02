// The kernels of one instruction set; compiled once for each with -DDS_ISA=name.
#include "kernels.h"
#include "mla_layer.h"

namespace deepseek {
namespace DS_ISA {
namespace {

const AttentionKernels& attention_kernels() {
#ifdef __AVX512F__
  return attention_avx512();
#else
  return attention_avx2();
#endif
}

template <bool Tiles>
void forward(const Model& model, const Step& step, const Workspace& work, int threads) {
  parallel(threads, [&](const Team& team) {
    const Resources resources{work.rooms + team.rank * work.room_bytes, Tiles};
    Forward{model, step, work, team, resources, attention_kernels()}.run();
  });
}

template <bool Tiles>
void multiply_rows(const Matrix& matrix, const float* x, int ldx, int rows, int narrow, const Workspace& work, float* y, int ld,
                   int threads) {
  parallel(threads, [&](const Team& team) {
    const Activations packed = view(work.input, narrow, Tiles);
    const Range share = team.share(rows);
    for (int t = share.begin; t < share.end; ++t) packed.put_row(t, x + static_cast<size_t>(t) * ldx);
    team.sync();
    multiply(matrix, Input{&packed, x, ldx}, rows, work.rooms + team.rank * work.room_bytes, Store{y, ld, nullptr, false}, team);
  });
}

template <bool Tiles>
void mix(const Experts& experts, const float* x, int ldx, int rows, int narrow, const Workspace& work, float* y, int ld,
         int threads) {
  parallel(threads, [&](const Team& team) {
    const Resources resources{work.rooms + team.rank * work.room_bytes, Tiles};
    const Activations packed = view(work.input, narrow, Tiles);
    const Range share = team.share(rows);
    for (int t = share.begin; t < share.end; ++t) packed.put_row(t, x + static_cast<size_t>(t) * ldx);
    team.sync();
    const ExpertStep step{experts, work.experts, Input{&packed, x, ldx}, rows, resources, team};
    step.sort();
    step.gate_up();
    team.sync();
    step.down();
    team.sync();
    step.combine(y, ld);
  });
}

void route_rows(const Experts& experts, const float* x, int ld, int rows, const Workspace& work, int threads) {
  parallel(threads, [&](const Team& team) { route(experts, work.experts, x, ld, rows, team); });
}

size_t room_bytes(int groups) {
  return (room_for(groups) + 4095) / 4096 * 4096;
}

}  // namespace
}  // namespace DS_ISA

#ifdef __AVX512F__
const Kernels& kernels_avx512() {
  static const Kernels table{"avx512", attention_avx512, avx512::forward<false>, avx512::multiply_rows<false>,
                             avx512::route_rows, avx512::mix<false>, avx512::room_bytes};
  return table;
}

const Kernels& kernels_amx() {
  static const Kernels table{"amx", attention_avx512, avx512::forward<true>, avx512::multiply_rows<true>,
                             avx512::route_rows, avx512::mix<true>, avx512::room_bytes};
  return table;
}
#else
const Kernels& kernels_avx2() {
  static const Kernels table{"avx2", attention_avx2, avx2::forward<false>, avx2::multiply_rows<false>,
                             avx2::route_rows, avx2::mix<false>, avx2::room_bytes};
  return table;
}
#endif

}  // namespace deepseek
