// Counts to transmission to line integrals. Twin: src/technique/tomography/normalize.rs, whose NaN policy holds here.
//
// Layout: counts [angle, row, column] with `rows` rows held; line integrals [row, angle, column]. One block a line of
// columns; any block size. Precision: f32; a result differs from the twin's by the rounding of one division and one
// logarithm. Bitwise repeatable, the counters too.
#include "common.h"

// T = (I − D)/(F − D) in place; pixels without a measurement become NaN and their line is flagged for `repair`.
//
// `low`, `high`: index of the flats before and after each angle, `part` how far it is between them; flats lie `frame`
// elements apart.
// Repairs are counted in the rows count_from ≤ row < count_to only, for the others belong to a neighbouring slab.
KERNEL void transmission(float* __restrict__ data, const float* __restrict__ dark, const float* __restrict__ flats,
                         const int* __restrict__ low, const int* __restrict__ high, const float* __restrict__ part,
                         unsigned long long frame, unsigned rows, unsigned columns, unsigned count_from,
                         unsigned count_to, unsigned char* __restrict__ flagged, unsigned long long* __restrict__ repaired) {
    const unsigned line = blockIdx.x, angle = line / rows, row = line % rows;
    const unsigned long long in_frame = static_cast<unsigned long long>(row) * columns;
    float* values = data + static_cast<unsigned long long>(line) * columns;
    const float* before = flats + low[angle] * frame + in_frame;
    const float* after = flats + high[angle] * frame + in_frame;
    const float between = part[angle];
    unsigned bad = 0;
    for (unsigned u = threadIdx.x; u < columns; u += blockDim.x) {
        const float black = dark[in_frame + u];
        const float beam = before[u] + between * (after[u] - before[u]) - black;
        const float t = (values[u] - black) / beam;
        const bool measured = beam > 0.0f && is_finite(t);
        values[u] = measured ? t : __int_as_float(0x7fc00000);
        bad += !measured;
    }
    if (bad) {
        flagged[line] = 1;
        if (row >= count_from && row < count_to) atomicAdd(repaired, static_cast<unsigned long long>(bad));
    }
}

// Replaces the NaN of flagged lines by straight lines between their neighbours, held beyond the outermost; 1 in a line
// with nothing else. Dynamic shared memory: `columns` floats.
KERNEL void repair(float* __restrict__ data, unsigned columns, const unsigned char* __restrict__ flagged) {
    if (!flagged[blockIdx.x]) return;
    DYNAMIC_SHARED(float, line);
    float* values = data + static_cast<unsigned long long>(blockIdx.x) * columns;
    for (unsigned u = threadIdx.x; u < columns; u += blockDim.x) line[u] = values[u];
    __syncthreads();
    const int n = static_cast<int>(columns);
    for (int u = static_cast<int>(threadIdx.x); u < n; u += static_cast<int>(blockDim.x)) {
        if (line[u] == line[u]) continue;
        int left = u - 1, right = u + 1;
        while (left >= 0 && line[left] != line[left]) --left;
        while (right < n && line[right] != line[right]) ++right;
        float value = 1.0f;
        if (left >= 0 && right < n) {
            const float a = line[left], b = line[right];
            value = a + (b - a) * static_cast<float>(u - left) / static_cast<float>(right - left);
        } else if (left >= 0) {
            value = line[left];
        } else if (right < n) {
            value = line[right];
        }
        values[u] = value;
    }
}

// −ln max(T, floor) from one layout into another (or in place, where both are the same); with `logarithm` 0 it only moves.
// Block (line): row = line / angles, angle = line % angles. Strides in elements.
KERNEL void minus_log(const float* in, unsigned long long in_row, unsigned long long in_angle, float* out,
                      unsigned long long out_row, unsigned long long out_angle, unsigned angles, unsigned columns,
                      float floor_value, int logarithm, unsigned long long* __restrict__ floored) {
    const unsigned row = blockIdx.x / angles, angle = blockIdx.x % angles;
    const float* from = in + row * in_row + angle * in_angle;
    float* to = out + row * out_row + angle * out_angle;
    unsigned raised = 0;
    for (unsigned u = threadIdx.x; u < columns; u += blockDim.x) {
        float v = from[u];
        if (logarithm) {
            const bool enough = v >= floor_value;
            raised += !enough;
            v = -logf(enough ? fminf(v, 3.40282347e38f) : floor_value);
        }
        to[u] = v;
    }
    if (raised) atomicAdd(floored, static_cast<unsigned long long>(raised));
}

// Sixteen-bit counts as floats: half the bytes over the bus, and exact.
KERNEL void counts_to_floats(const unsigned short* __restrict__ in, float* __restrict__ out, unsigned long long count) {
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) out[i] = static_cast<float>(in[i]);
}
