// Running medians across columns. Twin: src/technique/tomography/median.rs, equal bit for bit.
//
// Input and output [row, column, rank]; columns reflect at the ends. Compiled for one WINDOW (odd, at most twice the columns
// less one), so that the sorted window lies in registers; one wider than 127 lies in local memory, which the first cache
// holds, and every step passes through it once. A thread takes one rank through `stretch` columns: one value
// leaves and one enters per step, four integer operations per entry. Grid (rank blocks, stretches, rows).
#include "common.h"

#ifndef WINDOW
#define WINDOW 21
#endif
static_assert(WINDOW % 2 == 1, "a window has a middle");
#if WINDOW > 127
#define OVER_WINDOW _Pragma("unroll 4")
#else
#define OVER_WINDOW _Pragma("unroll")
#endif

// Puts `entering` in the place of one `leaving` of the sorted window; see the twin for why this is a sort.
DEVICE void replace(int (&window)[WINDOW], int leaving, int entering) {
    int below = static_cast<int>(0x80000000u), here = window[0];
    OVER_WINDOW
    for (int i = 0; i < WINDOW; ++i) {
        const int next = i + 1 < WINDOW ? window[i + 1 < WINDOW ? i + 1 : i] : 0x7fffffff;
        const int kept = here < leaving ? here : next;
        window[i] = max(below, min(entering, kept));
        below = kept;
        here = next;
    }
}

KERNEL void median_columns(const float* __restrict__ in, float* __restrict__ out, unsigned ranks, unsigned columns, unsigned stretch) {
    const unsigned rank = blockIdx.x * blockDim.x + threadIdx.x;
    if (rank >= ranks) return;
    const int n = static_cast<int>(columns), first = static_cast<int>(blockIdx.y * stretch);
    const int last = min(first + static_cast<int>(stretch), n), reach = WINDOW / 2;
    const unsigned long long plane = static_cast<unsigned long long>(blockIdx.z) * ranks * columns + rank;
    auto key = [&](int i) {
        if (i < 0) i = -1 - i;
        if (i >= n) i = 2 * n - 1 - i;
        return key_of(in[plane + static_cast<unsigned long long>(i) * ranks]);
    };
    int window[WINDOW];
    OVER_WINDOW
    for (int i = 0; i < WINDOW; ++i) window[i] = 0x7fffffff;
    for (int i = -reach; i <= reach; ++i) replace(window, 0x7fffffff, key(first + i));
    for (int u = first; u < last; ++u) {
        out[plane + static_cast<unsigned long long>(u) * ranks] = key_value(window[WINDOW / 2]);
        if (u + 1 < last) replace(window, key(u - reach), key(u + reach + 1));
    }
}
