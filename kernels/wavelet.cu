// Stripe removal by wavelets and Fourier damping. Twin: src/technique/tomography/wavelet.rs, which has the paper, the filter
// and why only what is taken away is put together.
//
// Layout: planes [row, angle, column], halved along both with every level; a band of n values has ⌊(n + 9)/2⌋. A thread a
// value; blocks along the columns; grid (column blocks, angles of the result, rows). Precision: f32, as the twin; sums in
// another order. Bitwise repeatable.
#include "common.h"

#define TAPS 10
DEVICE float low_tap(int j) {
    const float taps[TAPS] = {0.003335725285473771f, -0.012580751999082f, -0.006241490212798274f, 0.07757149384004571f,
                              -0.03224486958463837f, -0.242294887066382f, 0.1384281459013207f, 0.7243085284377726f,
                              0.6038292697971895f, 0.1601023979741929f};
    return taps[j];
}
DEVICE float high_tap(int j) { return j % 2 == 0 ? -low_tap(TAPS - 1 - j) : low_tap(TAPS - 1 - j); }

DEVICE unsigned mirror(int i, int n) {
    int j = i % (2 * n);
    if (j < 0) j += 2 * n;
    return static_cast<unsigned>(j < n ? j : 2 * n - 1 - j);
}

// Low band along the angle: `rows` × `columns` to gridDim.y × `columns`.
KERNEL void halve_rows(const float* __restrict__ in, float* __restrict__ out, int rows, unsigned columns) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x, k = blockIdx.y;
    if (c >= columns) return;
    const float* plane = in + static_cast<unsigned long long>(blockIdx.z) * static_cast<unsigned>(rows) * columns + c;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < TAPS; ++j)
        sum = fmaf(low_tap(j), plane[static_cast<unsigned long long>(mirror(2 * static_cast<int>(k) + 1 - j, rows)) * columns], sum);
    out[(static_cast<unsigned long long>(blockIdx.z) * gridDim.y + k) * columns + c] = sum;
}

// Both bands along the columns: `columns` to `half` values.
KERNEL void halve_columns(const float* __restrict__ in, float* __restrict__ low, float* __restrict__ high, int columns, unsigned half) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= half) return;
    const unsigned long long line = static_cast<unsigned long long>(blockIdx.z) * gridDim.y + blockIdx.y;
    const float* values = in + line * static_cast<unsigned>(columns);
    float l = 0.0f, h = 0.0f;
#pragma unroll
    for (int j = TAPS - 1; j >= 0; --j) {
        const float v = values[mirror(2 * static_cast<int>(k) + 1 - j, columns)];
        l = fmaf(low_tap(j), v, l);
        h = fmaf(high_tap(j), v, h);
    }
    low[line * half + k] = l;
    high[line * half + k] = h;
}

// Cosine and sine sums of a band [row, rows, columns] along the angle: [row, term, column] pairs, weighted by
// exp(−k²/2σ²). Grid (column blocks, terms, rows).
KERNEL void harmonics(const float* __restrict__ band, float2* __restrict__ sums, unsigned rows, unsigned columns, float sigma) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x, k = blockIdx.y;
    if (c >= columns) return;
    const float* plane = band + static_cast<unsigned long long>(blockIdx.z) * rows * columns + c;
    float2 sum = make_float2(0.0f, 0.0f);
    for (unsigned r = 0; r < rows; ++r) {
        float sine, cosine;
        sincosf(6.283185307179586f * (static_cast<float>(k * r % rows) / static_cast<float>(rows)), &sine, &cosine);
        const float v = plane[static_cast<unsigned long long>(r) * columns];
        sum.x = fmaf(cosine, v, sum.x);
        sum.y = fmaf(sine, v, sum.y);
    }
    // A pair of frequencies ±k but for the mean and, in bands of even length, the last.
    const float both = k == 0 || 2 * k == rows ? 1.0f : 2.0f, ratio = static_cast<float>(k) / sigma;
    const float weight = both * expf(-0.5f * ratio * ratio) / static_cast<float>(rows);
    sums[(static_cast<unsigned long long>(blockIdx.z) * gridDim.y + k) * columns + c] = make_float2(weight * sum.x, weight * sum.y);
}

// The band of what is taken away, from its sums. Grid (column blocks, rows of the band, rows).
KERNEL void damp(float* __restrict__ band, const float2* __restrict__ sums, unsigned terms, unsigned columns) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y, rows = gridDim.y;
    if (c >= columns) return;
    const float2* of = sums + static_cast<unsigned long long>(blockIdx.z) * terms * columns + c;
    float value = 0.0f;
    for (unsigned k = 0; k < terms; ++k) {
        float sine, cosine;
        sincosf(6.283185307179586f * (static_cast<float>(k * r % rows) / static_cast<float>(rows)), &sine, &cosine);
        const float2 sum = of[static_cast<unsigned long long>(k) * columns];
        value = fmaf(cosine, sum.x, fmaf(sine, sum.y, value));
    }
    band[(static_cast<unsigned long long>(blockIdx.z) * rows + r) * columns + c] = value;
}

// Lines of `columns` values from their bands of `half`; `low` may be missing (null): zeros.
KERNEL void double_columns(const float* __restrict__ low, const float* __restrict__ high, float* __restrict__ out, unsigned columns, unsigned half) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= columns) return;
    const unsigned long long line = static_cast<unsigned long long>(blockIdx.z) * gridDim.y + blockIdx.y;
    const unsigned long long at = line * half + c / 2;
    float sum = 0.0f;
    for (int i = 0; i < TAPS / 2; ++i) {
        const int j = c % 2 == 0 ? 2 * i + 1 : 2 * i;
        if (low) sum = fmaf(low_tap(j), low[at + static_cast<unsigned>(i)], sum);
        sum = fmaf(high_tap(j), high[at + static_cast<unsigned>(i)], sum);
    }
    out[line * columns + c] = sum;
}

// Rows from the low band of `half` rows, all other bands zero; `subtract` takes them from `out` instead.
KERNEL void double_rows(const float* __restrict__ low, float* __restrict__ out, unsigned columns, unsigned half, int subtract) {
    const unsigned c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c >= columns) return;
    const float* plane = low + (static_cast<unsigned long long>(blockIdx.z) * half + r / 2) * columns + c;
    float sum = 0.0f;
    for (int i = 0; i < TAPS / 2; ++i)
        sum = fmaf(low_tap(r % 2 == 0 ? 2 * i + 1 : 2 * i), plane[static_cast<unsigned long long>(i) * columns], sum);
    float* value = out + (static_cast<unsigned long long>(blockIdx.z) * gridDim.y + r) * columns + c;
    *value = subtract ? *value - sum : sum;
}
