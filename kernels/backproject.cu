// Direct filtered back-projection, all but its Fourier transforms. Twin: src/technique/tomography/direct.rs.
//
// Two slices share one complex number, PAIRS pairs are done together. Lines come from `load_rows` of gridding.cu and a
// forward transform; `extend_rows` filters them and extends their spectrum with zeros, an inverse transform makes fine
// lines, `backproject` sums them. Precision: f32, positions f64; the twin is f64 throughout. Bitwise repeatable.
#include "common.h"

#ifndef PAIRS
#define PAIRS 4
#endif
static_assert(PAIRS == 1 || PAIRS == 2 || PAIRS == 4 || PAIRS == 8, "samples are read in pairs of pairs");

struct Ray {
    double cosine, sine;  // times the points per pixel
    float weight;         // angular weight over the padded length
    int angle;
};

// Spectra [pair, angle, padded] of the rays `first` … to spectra [pair, ray, fine], filtered. Grid (blocks along fine,
// rays, PAIRS); beyond the last ray lines are 0. `gains` has half the gain at Nyquist, which both signs share.
KERNEL void extend_rows(const float2* __restrict__ lines, float2* __restrict__ fine_lines, const Ray* __restrict__ rays,
                        const float* __restrict__ gains, unsigned first, unsigned ray_count, unsigned angles, unsigned padded, unsigned fine) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= fine) return;
    float2 v = make_float2(0.0f, 0.0f);
    float2* out = fine_lines + (static_cast<unsigned long long>(blockIdx.z) * gridDim.y + blockIdx.y) * fine + k;
    if (first + blockIdx.y >= ray_count) {
        *out = v;
        return;
    }
    const Ray ray = rays[first + blockIdx.y];
    const float2* line = lines + (static_cast<unsigned long long>(blockIdx.z) * angles + static_cast<unsigned>(ray.angle)) * padded;
    const unsigned half = padded / 2;
    if (k <= half) {
        const float gain = gains[k] * ray.weight;
        v = make_float2(line[k].x * gain, line[k].y * gain);
    }
    if (fine - k <= half) {
        const unsigned m = fine - k;
        const float gain = gains[m] * ray.weight;
        v.x += line[padded - m].x * gain;
        v.y += line[padded - m].y * gain;
    }
    *out = v;
}

// Adds `count` rays' fine lines [ray, point, pair] to images [row, y, x]; `fresh` starts them. Block (32, 8), grid
// (⌈size/32⌉, ⌈size/8⌉). `centre`: the axis, in points.
KERNEL void backproject(const float2* __restrict__ fine_lines, float* __restrict__ images, const Ray* __restrict__ rays,
                        unsigned first, unsigned count, unsigned rows, int fine, unsigned size, double centre, int fresh) {
    const unsigned ix = blockIdx.x * blockDim.x + threadIdx.x, iy = blockIdx.y * blockDim.y + threadIdx.y;
    if (ix >= size || iy >= size) return;
    const double x = ix - (size - 1) * 0.5, y = (size - 1) * 0.5 - iy;
    float2 sums[PAIRS], rest[PAIRS];
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) sums[p] = rest[p] = make_float2(0.0f, 0.0f);
    for (unsigned r = 0; r < count; ++r) {
        const Ray ray = rays[first + r];
        const double at = x * ray.cosine + (y * ray.sine + centre), down = floor(at);
        const float part = static_cast<float>(at - down);
        int low = static_cast<int>(down);
        low += low < 0 ? fine : 0;
        low -= low >= fine ? fine : 0;
        const int high = low + 1 == fine ? 0 : low + 1;
        const float2* line = fine_lines + static_cast<unsigned long long>(r) * static_cast<unsigned>(fine) * PAIRS;
        const float2* a = line + static_cast<unsigned long long>(low) * PAIRS;
        const float2* b = line + static_cast<unsigned long long>(high) * PAIRS;
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            sums[p].x += fmaf(part, b[p].x - a[p].x, a[p].x);
            sums[p].y += fmaf(part, b[p].y - a[p].y, a[p].y);
        }
        // Sums of sixteen rays each: a long sum in f32 would lose two digits.
        if (r % 16 == 15) {
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                rest[p].x += sums[p].x;
                rest[p].y += sums[p].y;
                sums[p] = make_float2(0.0f, 0.0f);
            }
        }
    }
    const unsigned long long plane = static_cast<unsigned long long>(size) * size, pixel = static_cast<unsigned long long>(iy) * size + ix;
#pragma unroll
    for (unsigned p = 0; p < PAIRS; ++p) {
        if (2 * p < rows) {
            float* out = images + 2 * p * plane + pixel;
            *out = (fresh ? 0.0f : *out) + (rest[p].x + sums[p].x);
        }
        if (2 * p + 1 < rows) {
            float* out = images + (2 * p + 1) * plane + pixel;
            *out = (fresh ? 0.0f : *out) + (rest[p].y + sums[p].y);
        }
    }
}

// Masks outside the circle of squared radius `radius2` (negative: no mask) and scales images [row, y, x]. Twin: mask.rs.
// Grid (blocks along x, y, rows).
KERNEL void mask_scale(float* __restrict__ images, unsigned size, double radius2, float factor) {
    const unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x >= size) return;
    const double across = x - (size - 1) * 0.5, down = y - (size - 1) * 0.5;
    const bool inside = radius2 < 0.0 || across * across <= radius2 - down * down;
    float* value = images + (static_cast<unsigned long long>(blockIdx.z) * size + y) * size + x;
    *value = inside ? *value * factor : 0.0f;
}
