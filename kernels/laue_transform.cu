// Coded aperture: correlation of measurements with templates by Fourier transforms, for src/technique/laue/search.rs.
//
// A block transforms one measurement, as a signal of 4096 samples. A template longer than that is taken in overlapping stretches
// (overlap-save: Press et al., *Numerical Recipes*, 2007, section 13.1), of each of which `valid` offsets are right; two
// stretches are one complex signal, whose correlation with a real measurement has one's in its real and the other's in its
// imaginary part. So a pixel's result does not depend on other pixels. The signal's 4096 points live in the registers of 256 threads, 16
// each; between radix-16 passes they change places through shared memory. Nothing but measurements and correlations
// crosses the memory bus.
//
// 4096 = 16·16·16: with sample n = t₂ + 16 j₂ + 256 j and frequency k = q + 16 q₂ + 256 q₃ the factor of the transform is
// w₁₆^{jq} · w₄₀₉₆^{(t₂ + 16 j₂) q} · w₁₆^{j₂q₂} · w₂₅₆^{t₂q₂} · w₁₆^{t₂q₃}. Forward that order of passes, back the reverse, so that spectra
// need not be sorted: register q₃ of thread 16 q + q₂ holds frequency k.
#include "common.h"

#define POINTS 4096
#define THREADS 256
#define RADIX 16

DEVICE float2 times(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }

// Transforms four numbers; SIGN −1 forward, +1 back.
template <int SIGN>
DEVICE void four(float2& a, float2& b, float2& c, float2& d) {
    const float2 p = make_float2(a.x + c.x, a.y + c.y), m = make_float2(a.x - c.x, a.y - c.y);
    const float2 q = make_float2(b.x + d.x, b.y + d.y), n = make_float2(SIGN * (d.y - b.y), SIGN * (b.x - d.x));
    a = make_float2(p.x + q.x, p.y + q.y);
    b = make_float2(m.x + n.x, m.y + n.y);
    c = make_float2(p.x - q.x, p.y - q.y);
    d = make_float2(m.x - n.x, m.y - n.y);
}

// Transforms sixteen numbers, 4 × 4.
template <int SIGN>
DEVICE void sixteen(float2* v) {
    const float cosines[10] = {1.0f, 0.92387953f, 0.70710678f, 0.38268343f, 0.0f, -0.38268343f, -0.70710678f, -0.92387953f, -1.0f, -0.92387953f};
    const float sines[10] = {0.0f, 0.38268343f, 0.70710678f, 0.92387953f, 1.0f, 0.92387953f, 0.70710678f, 0.38268343f, 0.0f, -0.38268343f};
#pragma unroll
    for (int b = 0; b < 4; ++b) four<SIGN>(v[b], v[b + 4], v[b + 8], v[b + 12]);
#pragma unroll
    for (int b = 1; b < 4; ++b) {
#pragma unroll
        for (int c = 1; c < 4; ++c) v[b + 4 * c] = times(v[b + 4 * c], make_float2(cosines[b * c], SIGN * sines[b * c]));
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) four<SIGN>(v[4 * c], v[4 * c + 1], v[4 * c + 2], v[4 * c + 3]);
    // Result c + 4 d lies at 4 c + d.
    float2 sorted[RADIX];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int d = 0; d < 4; ++d) sorted[c + 4 * d] = v[4 * c + d];
    }
#pragma unroll
    for (int i = 0; i < RADIX; ++i) v[i] = sorted[i];
}

// Point n of the signal lies in shared memory at n + n/16: a gap behind every 16, so that strides of 16 do not meet in one bank.
#define SHARED_POINTS (POINTS + POINTS / 16)

// Forward: in, register j of thread t holds sample t + 256 j; out, the order of spectra. `turns`: w₄₀₉₆^{tq} at 256 q + t, behind
// them w₂₅₆^{tq} at 16 q + t, w the roots e^{−2πi/n}. Blocks of 256 points belong to 16 threads
// of one warp; where a thread writes what it has just read itself, nobody has to wait.
DEVICE void forward(float2* v, float2* shared, const float2* turns) {
    const unsigned t = threadIdx.x, high = t / 16, low = t % 16;
    float2 *wide = shared + t + high, *block = shared + 272 * high;
    sixteen<-1>(v);
#pragma unroll
    for (unsigned q = 0; q < RADIX; ++q) wide[272 * q] = times(v[q], turns[256 * q + t]);
    __syncthreads();
#pragma unroll
    for (unsigned j = 0; j < RADIX; ++j) v[j] = block[low + 17 * j];
    sixteen<-1>(v);
#pragma unroll
    for (unsigned q = 0; q < RADIX; ++q) block[low + 17 * q] = times(v[q], turns[POINTS + 16 * q + low]);
    __syncwarp();
#pragma unroll
    for (unsigned j = 0; j < RADIX; ++j) v[j] = block[17 * low + j];
    sixteen<-1>(v);
}

// Back, not normalised: the steps of `forward` in reverse.
DEVICE void back(float2* v, float2* shared, const float2* turns) {
    const unsigned t = threadIdx.x, high = t / 16, low = t % 16;
    float2 *wide = shared + t + high, *block = shared + 272 * high;
    sixteen<1>(v);
#pragma unroll
    for (unsigned j = 0; j < RADIX; ++j) {
        const float2 w = turns[POINTS + 16 * j + low];
        block[17 * low + j] = times(v[j], make_float2(w.x, -w.y));
    }
    __syncwarp();
#pragma unroll
    for (unsigned q = 0; q < RADIX; ++q) v[q] = block[low + 17 * q];
    sixteen<1>(v);
#pragma unroll
    for (unsigned j = 0; j < RADIX; ++j) {
        const float2 w = turns[256 * high + low + 16 * j];
        block[low + 17 * j] = times(v[j], make_float2(w.x, -w.y));
    }
    __syncthreads();
#pragma unroll
    for (unsigned q = 0; q < RADIX; ++q) v[q] = wide[272 * q];
    __syncthreads();
    sixteen<1>(v);
}

// Spectra of stretches of templates, two as one complex signal, [template, pair, register, thread]; stretch i begins at sample
// i · valid. Templates from the `first` on. Grid (templates, pairs), block 256.
KERNEL void laue_spectra(const float* __restrict__ templates, float2* __restrict__ spectra, const float2* __restrict__ turns,
                         unsigned first, unsigned samples, unsigned valid) {
    __shared__ float2 shared[SHARED_POINTS];
    const unsigned which = first + blockIdx.x, begin = 2 * blockIdx.y * valid;
    const float* expected = templates + static_cast<unsigned long long>(which) * samples;
    float2 v[RADIX];
#pragma unroll
    for (unsigned j = 0; j < RADIX; ++j) {
        const unsigned one = begin + threadIdx.x + THREADS * j, other = one + valid;
        // Measurements have no average: a constant makes no difference, and rounding is least about the middle.
        v[j] = make_float2(one < samples ? expected[one] - 0.5f : 0.0f, other < samples ? expected[other] - 0.5f : 0.0f);
    }
    forward(v, shared, turns);
    float2* out = spectra + (static_cast<unsigned long long>(which) * gridDim.y + blockIdx.y) * POINTS + threadIdx.x;
#pragma unroll
    for (unsigned j = 0; j < RADIX; ++j) out[j * THREADS] = v[j];
}

// Does what `laue_correlate` of laue_search.cu does, for measurements of at most 4097 − `valid` samples, a block a listed pixel: its
// correlation at offsets `from` … `to` into its row of `correlation`, which begins at offset `origins`. `pairs`: of a
// template's stretches.
KERNEL void laue_transform(const float2* __restrict__ spectra, const float* __restrict__ data, const double* __restrict__ averages,
                           const int* __restrict__ templates, const int* __restrict__ lengths, const int* __restrict__ origins,
                           const int* __restrict__ from, const int* __restrict__ to, const float2* turns, float* correlation,
                           unsigned stride, unsigned span, int valid, int pairs) {
    __shared__ float2 shared[SHARED_POINTS];
    const unsigned listed = blockIdx.x, length = static_cast<unsigned>(lengths[listed]);
    const int begin = from[listed], end = to[listed];
    if (begin >= end) return;
    const float* values = data + static_cast<unsigned long long>(listed) * stride;
    const double average = averages[listed];
    float2 measured[RADIX];
#pragma unroll
    for (unsigned j = 0; j < RADIX; ++j) {
        const unsigned at = threadIdx.x + THREADS * j;
        measured[j] = make_float2(at < length ? static_cast<float>(static_cast<double>(values[at]) - average) : 0.0f, 0.0f);
    }
    forward(measured, shared, turns);
    float* row = correlation + static_cast<unsigned long long>(listed) * span - origins[listed];
    const unsigned long long first = static_cast<unsigned long long>(templates[listed]) * static_cast<unsigned>(pairs);
    for (int i = begin / (2 * valid); i < pairs && 2 * i * valid < end; ++i) {
        const float2* spectrum = spectra + (first + static_cast<unsigned>(i)) * POINTS + threadIdx.x;
        float2 v[RADIX];
#pragma unroll
        for (unsigned j = 0; j < RADIX; ++j) v[j] = times(spectrum[j * THREADS], make_float2(measured[j].x, -measured[j].y));
        back(v, shared, turns);
#pragma unroll
        for (unsigned j = 0; j < RADIX; ++j) {
            const int within = static_cast<int>(threadIdx.x + THREADS * j), m = 2 * i * valid + within;
            if (within >= valid) continue;
            if (m >= begin && m < end) row[m] = v[j].x * (1.0f / POINTS);
            if (m + valid >= begin && m + valid < end) row[m + valid] = v[j].y * (1.0f / POINTS);
        }
    }
}
