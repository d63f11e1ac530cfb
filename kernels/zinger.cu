// Removal of zingers. Twin: src/technique/tomography/zinger.rs, equal bit for bit.
//
// Input [angle, held row, column]; output of the rows from `first_row` on, so that the window sees its neighbours, rows and
// angles `out_row` and `out_angle` elements apart. A thread a pixel, blocks along the columns; grid (column blocks, row, angle).
#include "common.h"

KERNEL void zinger(const float* __restrict__ in, float* __restrict__ out, unsigned held, unsigned columns, unsigned first_row,
                   unsigned long long out_row, unsigned long long out_angle, int reach, float threshold, unsigned long long* __restrict__ replaced) {
    const unsigned u = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, angle = blockIdx.z;
    if (u >= columns) return;
    const float* frame = in + static_cast<unsigned long long>(angle) * held * columns;
    const int r = static_cast<int>(first_row + row), c = static_cast<int>(u);
    const int top = max(r - reach, 0), bottom = min(r + reach, static_cast<int>(held) - 1);
    const int left = max(c - reach, 0), right = min(c + reach, static_cast<int>(columns) - 1);
    const float here = frame[static_cast<unsigned long long>(r) * columns + c], limit = here - threshold;
    int below = 0;
    for (int y = top; y <= bottom; ++y) {
        const float* line = frame + static_cast<unsigned long long>(y) * columns;
        for (int x = left; x <= right; ++x) below += line[x] < limit;
    }
    // The lower median lies below the limit when more values than its index do.
    const int middle = ((bottom - top + 1) * (right - left + 1) - 1) / 2;
    float value = here;
    if (below > middle) {
        for (int y = top; y <= bottom; ++y) {
            for (int x = left; x <= right; ++x) {
                const float candidate = frame[static_cast<unsigned long long>(y) * columns + x];
                const int key = key_of(candidate);
                int less = 0, equal = 0;
                for (int y2 = top; y2 <= bottom; ++y2) {
                    for (int x2 = left; x2 <= right; ++x2) {
                        const int other = key_of(frame[static_cast<unsigned long long>(y2) * columns + x2]);
                        less += other < key;
                        equal += other == key;
                    }
                }
                if (less <= middle && middle < less + equal) value = candidate;
            }
        }
        atomicAdd(replaced, 1ull);
    }
    out[row * out_row + angle * out_angle + u] = value;
}
