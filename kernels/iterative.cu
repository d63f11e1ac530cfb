// SIRT and CGLS: the projector, its transpose, and the steps between them. Twins: src/technique/tomography/projector.rs and
// iterative.rs, which have the papers; names are the same.
//
// SLICES slices lie side by side: sinograms [angle, column, slice]; images [line, pixel, slice] with an empty pixel around
// them, `size + 2` pixels a line and as many lines. A weight is found once for all slices of a thread. Both directions
// gather: nobody writes what another writes, there are no atomics, and results are bitwise repeatable.
//
// Weights are computed by the same operations in both directions, none of them contracted, so that one is the transpose of
// the other, and sums are taken in the twin's order: element by element the pair equals the twin compiled with fused
// multiply-adds. Precision: f32, positions f64, sums of squares f64 (in another order than the twin's).
#include "common.h"

#ifndef SLICES
#define SLICES 16
#endif
static_assert(SLICES == 1 || SLICES == 2 || SLICES == 4 || SLICES == 8 || SLICES == 16, "slices are read in fours");

// Threads of a block that walks over values: a multiple of SLICES, so that a thread stays with one slice.
#define THREADS 256

// One angle: crossings with line r lie at pixel a·u + b0 + b1·r, lines being rows or, of the later rays, columns.
struct Ray {
    double a, b0, b1;
    double back;  // 1/a
    float scale;  // distance of crossings
    int angle;    // index of its line in sinograms
};

DEVICE void load(const float* from, float (&to)[SLICES]) {
#if SLICES % 4 == 0
#pragma unroll
    for (int s = 0; s < SLICES; s += 4) {
        const float4 v = *reinterpret_cast<const float4*>(from + s);
        to[s] = v.x;
        to[s + 1] = v.y;
        to[s + 2] = v.z;
        to[s + 3] = v.w;
    }
#else
    for (int s = 0; s < SLICES; ++s) to[s] = from[s];
#endif
}

// Where column 0 crosses line r, counted so that the empty pixel before the line is 0.
DEVICE double start_of(const Ray& ray, unsigned r) {
    return __dadd_rn(__dadd_rn(1.0, ray.b0), __dmul_rn(ray.b1, static_cast<double>(r)));
}

// Weights of the two pixels beside a crossing; returns the first of them.
DEVICE int weigh(double at, float scale, float& low, float& high) {
    const int i = static_cast<int>(floor(at));
    high = __fmul_rn(static_cast<float>(at - static_cast<double>(i)), scale);
    low = __fsub_rn(scale, high);
    return i;
}

// A x, or `data` − A x where there are data. Rays in order, the first `straight` of them cross rows. Block (32, 8), grid
// (⌈columns/32⌉, ⌈rays/8⌉).
KERNEL void project(const float* __restrict__ image, float* __restrict__ sinograms, const float* __restrict__ data, const Ray* __restrict__ rays,
                    unsigned straight, unsigned ray_count, unsigned columns, unsigned size) {
    const unsigned u = blockIdx.x * blockDim.x + threadIdx.x, k = blockIdx.y * blockDim.y + threadIdx.y;
    if (u >= columns || k >= ray_count) return;
    const Ray ray = rays[k];
    const unsigned long long edge = size + 2ull;
    const unsigned long long line_step = (k < straight ? edge : 1) * SLICES, pixel_step = (k < straight ? 1 : edge) * SLICES;
    const double across = __dmul_rn(ray.a, static_cast<double>(u)), end = static_cast<double>(size + 1);
    float sums[SLICES];
#pragma unroll
    for (int s = 0; s < SLICES; ++s) sums[s] = 0.0f;
    for (unsigned r = 0; r < size; ++r) {
        const double at = __dadd_rn(start_of(ray, r), across);
        // Between 0 and size + 1 at least one neighbour is a pixel, and the other is one or empty.
        if (!(at >= 0.0 && at < end)) continue;
        float low, high, near[SLICES], far[SLICES];
        const float* pixel = image + (r + 1) * line_step + static_cast<unsigned>(weigh(at, ray.scale, low, high)) * pixel_step;
        load(pixel, near);
        load(pixel + pixel_step, far);
#pragma unroll
        for (int s = 0; s < SLICES; ++s) sums[s] = fmaf(high, far[s], fmaf(low, near[s], sums[s]));
    }
    const unsigned long long to = (static_cast<unsigned long long>(static_cast<unsigned>(ray.angle)) * columns + u) * SLICES;
#pragma unroll
    for (int s = 0; s < SLICES; ++s) sinograms[to + s] = data ? __fsub_rn(data[to + s], sums[s]) : sums[s];
}

// Aᵀ y into the pixels of an image; the empty ones around them are left alone. Block (32, 8), grid (⌈size/32⌉, ⌈size/8⌉).
KERNEL void spread(const float* __restrict__ sinograms, float* __restrict__ image, const Ray* __restrict__ rays, unsigned straight,
                   unsigned ray_count, unsigned columns, unsigned size) {
    const unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= size || y >= size) return;
    float all[SLICES];
#pragma unroll
    for (int s = 0; s < SLICES; ++s) all[s] = 0.0f;
    for (int part = 0; part < 2; ++part) {
        const unsigned line = part ? x : y;
        const int pixel = static_cast<int>(part ? y : x) + 1;
        float sums[SLICES];
#pragma unroll
        for (int s = 0; s < SLICES; ++s) sums[s] = 0.0f;
        for (unsigned k = part ? straight : 0; k < (part ? ray_count : straight); ++k) {
            const Ray ray = rays[k];
            const double start = start_of(ray, line);
            // Crossings lie at least a pixel apart: of those within one pixel of this one there are at most two.
            const int first = static_cast<int>(floor((pixel - start) * ray.back));
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const int u = first + n;
                if (u < 0 || u >= static_cast<int>(columns)) continue;
                float low, high, values[SLICES];
                const int i = weigh(__dadd_rn(start, __dmul_rn(ray.a, static_cast<double>(u))), ray.scale, low, high);
                if (i != pixel && i + 1 != pixel) continue;
                const float weight = i == pixel ? low : high;
                load(sinograms + (static_cast<unsigned long long>(static_cast<unsigned>(ray.angle)) * columns + static_cast<unsigned>(u)) * SLICES, values);
#pragma unroll
                for (int s = 0; s < SLICES; ++s) sums[s] = fmaf(weight, values[s], sums[s]);
            }
        }
#pragma unroll
        for (int s = 0; s < SLICES; ++s) all[s] = part ? __fadd_rn(all[s], sums[s]) : sums[s];
    }
    float* to = image + ((y + 1ull) * (size + 2ull) + x + 1) * SLICES;
#pragma unroll
    for (int s = 0; s < SLICES; ++s) to[s] = all[s];
}

// Line integrals [row, angle, column] to sinograms; rows that do not exist count as 0. Grid (blocks along columns, angles).
KERNEL void interleave(const float* __restrict__ rows, float* __restrict__ sinograms, unsigned count, unsigned columns) {
    const unsigned u = blockIdx.x * blockDim.x + threadIdx.x, angle = blockIdx.y, angles = gridDim.y;
    if (u >= columns) return;
    const unsigned long long at = static_cast<unsigned long long>(angle) * columns + u, row = static_cast<unsigned long long>(angles) * columns;
#pragma unroll
    for (unsigned s = 0; s < SLICES; ++s) sinograms[at * SLICES + s] = s < count ? rows[s * row + at] : 0.0f;
}

// Images to images [row, y, x], masked outside the circle of squared radius `radius2` (negative: no mask) and scaled. Block
// (32, 8), grid (⌈size/32⌉, ⌈size/8⌉).
KERNEL void release(const float* __restrict__ image, float* __restrict__ images, unsigned count, unsigned size, double radius2, float factor) {
    const unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= size || y >= size) return;
    const double across = x - (size - 1) * 0.5, down = y - (size - 1) * 0.5;
    const bool inside = radius2 < 0.0 || across * across <= radius2 - down * down;
    const float* from = image + ((y + 1ull) * (size + 2ull) + x + 1) * SLICES;
    const unsigned long long plane = static_cast<unsigned long long>(size) * size, at = static_cast<unsigned long long>(y) * size + x;
#pragma unroll
    for (unsigned s = 0; s < SLICES; ++s)
        if (s < count) images[s * plane + at] = inside ? from[s] * factor : 0.0f;
}

// Sums of a block's threads, slice by slice, into `parts` [block, slice]. All threads come here.
DEVICE void reduce(double mine, double* parts) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned by = THREADS / 2; by >= SLICES; by /= 2) {
        if (threadIdx.x < by) sums[threadIdx.x] += sums[threadIdx.x + by];
        __syncthreads();
    }
    if (threadIdx.x < SLICES) parts[static_cast<unsigned long long>(blockIdx.x) * SLICES + threadIdx.x] = sums[threadIdx.x];
    __syncthreads();
}

DEVICE double squared(float v) { return static_cast<double>(v) * static_cast<double>(v); }

// Sums of squares; then, where there are weights, each value times that of its place. `count`: values of all slices.
KERNEL void measure(float* __restrict__ values, const float* __restrict__ weights, unsigned long long count, double* __restrict__ parts) {
    double sum = 0.0;
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) {
        const float v = values[i];
        sum += squared(v);
        if (weights) values[i] = __fmul_rn(v, weights[i / SLICES]);
    }
    reduce(sum, parts);
}

// a ← factor·a + other·b, each slice with its own numbers, and the sums of squares of what comes out.
KERNEL void combine(float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ factors, const float* __restrict__ others,
                    unsigned long long count, double* __restrict__ parts) {
    const float factor = factors[threadIdx.x % SLICES], other = others[threadIdx.x % SLICES];
    double sum = 0.0;
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) {
        const float v = __fadd_rn(__fmul_rn(factor, a[i]), __fmul_rn(other, b[i]));
        a[i] = v;
        sum += squared(v);
    }
    reduce(sum, parts);
}

// x ← max(x + C back, floor_value) of slices that are `on`; sums of squares of the change, then of x, [2, block, slice].
KERNEL void sirt_step(float* __restrict__ x, const float* __restrict__ back, const float* __restrict__ weights, const float* __restrict__ on,
                      float floor_value, unsigned long long count, double* __restrict__ parts) {
    const float step = on[threadIdx.x % SLICES];
    double change = 0.0, size = 0.0;
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) {
        const float now = x[i];
        const float next = fmaxf(__fadd_rn(now, __fmul_rn(__fmul_rn(step, weights[i / SLICES]), back[i])), floor_value);
        change += squared(__fsub_rn(next, now));
        size += squared(next);
        x[i] = next;
    }
    reduce(change, parts);
    reduce(size, parts + static_cast<unsigned long long>(gridDim.x) * SLICES);
}

// What is negative becomes 0.
KERNEL void clamp(float* __restrict__ x, unsigned long long count) {
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) x[i] = fmaxf(x[i], 0.0f);
}

// One over sums of the matrix's rows or columns; 0 where a sum is next to nothing.
KERNEL void invert(float* __restrict__ sums, unsigned long long count) {
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) sums[i] = sums[i] > 1e-3f ? __fdiv_rn(1.0f, sums[i]) : 0.0f;
}
