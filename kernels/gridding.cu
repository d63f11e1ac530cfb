// Gridding reconstruction, all but its Fourier transforms. Twin: src/technique/tomography/gridding.rs, which has the
// formula; names are the same.
//
// Two slices share one complex number, PAIRS pairs are done together: the place of a sample and its weights are then found
// once for 2 · PAIRS slices. Where the twin spreads each sample over the cells around it, here each cell gathers the samples
// around it: no atomics, so that the result is bitwise repeatable and does not depend on PAIRS.
#include "common.h"

#ifndef PAIRS
#define PAIRS 8
#endif
static_assert(PAIRS == 1 || PAIRS == 2 || PAIRS == 4 || PAIRS == 8, "samples are read in pairs of pairs");

// Rows [row, angle, column] to padded complex lines [pair, angle, padded]; rows that do not exist count as 0. `weights`, of
// a column each: those of an axis aside (twin: offset.rs), or none. Grid (blocks along padded, angles, PAIRS).
KERNEL void load_rows(const float* __restrict__ rows, float2* __restrict__ lines, const float* __restrict__ weights, unsigned count,
                      unsigned angles, unsigned columns, unsigned padded, int edge) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x, angle = blockIdx.y, pair = blockIdx.z;
    if (k >= padded) return;
    // The row is periodic in the padded length: its right half of the pad continues the right end, the rest the left.
    int u = static_cast<int>(k);
    if (k >= columns) u = !edge ? -1 : k < columns + (padded - columns) / 2 ? static_cast<int>(columns) - 1 : 0;
    float2 v = make_float2(0.0f, 0.0f);
    if (u >= 0) {
        const unsigned long long at = static_cast<unsigned long long>(angle) * columns + static_cast<unsigned>(u);
        const unsigned long long row = static_cast<unsigned long long>(angles) * columns;
        if (2 * pair < count) v.x = rows[2 * pair * row + at];
        if (2 * pair + 1 < count) v.y = rows[(2 * pair + 1) * row + at];
        if (weights) v = make_float2(v.x * weights[u], v.y * weights[u]);
    }
    lines[(static_cast<unsigned long long>(pair) * angles + angle) * padded + k] = v;
}

// One ray: direction of an angle, ordered by direction modulo π.
struct Ray {
    double turn;           // phase step per frequency, in turns
    float dx_high, dx_low; // step across grid columns per frequency, in two parts
    float dy_high, dy_low; // and across grid rows (downwards)
    float inverse_dx, inverse_dy;
    float weight;          // angular weight over the padded length
    int angle;             // index of its row
};

// Filters transformed lines and lays them out for `gather`: [ray, m + padded/2, pair], m = −padded/2 … padded/2.
// Grid (blocks along padded + 1, rays).
KERNEL void filter_rows(const float2* __restrict__ lines, float2* __restrict__ samples, const Ray* __restrict__ rays,
                        const float* __restrict__ gains, unsigned angles, unsigned padded) {
    const unsigned s = blockIdx.x * blockDim.x + threadIdx.x;
    if (s > padded) return;
    const Ray ray = rays[blockIdx.y];
    const int m = static_cast<int>(s) - static_cast<int>(padded / 2);
    const double turns = ray.turn * m;
    float sine, cosine;
    sincosf(static_cast<float>(turns - floor(turns + 0.5)) * 6.283185307179586f, &sine, &cosine);
    const float gain = gains[m < 0 ? -m : m] * ray.weight;
    sine *= gain;
    cosine *= gain;
    const unsigned k = m < 0 ? padded - static_cast<unsigned>(-m) : static_cast<unsigned>(m);
    float2* out = samples + (static_cast<unsigned long long>(blockIdx.y) * (padded + 1) + s) * PAIRS;
#pragma unroll
    for (unsigned pair = 0; pair < PAIRS; ++pair) {
        const float2 v = lines[(static_cast<unsigned long long>(pair) * angles + static_cast<unsigned>(ray.angle)) * padded + k];
        out[pair] = make_float2(v.x * cosine - v.y * sine, v.x * sine + v.y * cosine);
    }
}

// Half the kernel's width, in cells, and its table's step, within which the twin lets it fall to 0 at the ends.
#define HALF_WIDTH 2.0f
#define TABLE_STEP (1.0f / 1024.0f)

// The kernel's exponent √(1 − (d/2)²) − 1 and, next to its end, the factor of the twin's table.
DEVICE float exponent(float d, float& taper) {
    const float a = fabsf(d), end = HALF_WIDTH - TABLE_STEP;
    if (a > end) taper *= (HALF_WIDTH - a) * (1.0f / TABLE_STEP);
    const float x = fminf(a, end) * (1.0f / HALF_WIDTH);
    return fast_sqrt(1.0f - x * x) - 1.0f;
}

// Every cell of the grids [pair, row, column] (edge × edge, frequency 0 at edge/2) sums the samples within HALF_WIDTH.
//
// `first_ray[b]`, b = 0 … buckets: the first ray at or behind direction b π/buckets. `beta` is the kernel's, times log₂ e.
// Block (32, 8), grid (⌈edge/32⌉, ⌈edge/8⌉).
KERNEL void gather(const float2* __restrict__ samples, float2* __restrict__ grids, const Ray* __restrict__ rays,
                   const int* __restrict__ first_ray, int buckets, int ray_count, int padded, int edge, float beta) {
    const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int row = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
    if (column >= edge || row >= edge) return;
    float2 sums[PAIRS];
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) sums[p] = make_float2(0.0f, 0.0f);
    const int half = padded / 2, middle = edge / 2;
    // The grid is periodic: next to its ends a cell also stands for one on the other side.
    const int cx = column - middle, cy = row - middle;
    const int other_x = cx < -middle + 3 ? cx + edge : cx >= edge - middle - 3 ? cx - edge : cx;
    const int other_y = cy < -middle + 3 ? cy + edge : cy >= edge - middle - 3 ? cy - edge : cy;
    for (int image = 0; image < 4; ++image) {
        if ((image & 1 && other_x == cx) || (image & 2 && other_y == cy)) continue;
        const float x = static_cast<float>(image & 1 ? other_x : cx), y = static_cast<float>(image & 2 ? other_y : cy);
        const float radius = fast_sqrt(x * x + y * y), reach = 2.8285f;
        if (radius > static_cast<float>(middle) + reach) continue;
        // Rays whose line passes within `reach`: directions within asin(reach / radius) of the cell's own, modulo π.
        int from = 0, to = buckets;
        if (radius > 3.0f * reach) {
            const float ratio = reach / radius;
            // asin(r) ≤ r + 0.2 r³ for r ≤ 1/3, and a bucket more on either side for rounding.
            const float opening = (ratio + 0.2f * ratio * ratio * ratio) * 0.318309886f * static_cast<float>(buckets);
            float direction = atan2f(-y, x) * 0.318309886f * static_cast<float>(buckets);
            if (direction < 0.0f) direction += static_cast<float>(buckets);
            from = static_cast<int>(floorf(direction - opening)) - 1;
            to = static_cast<int>(floorf(direction + opening)) + 2;
            if (to - from >= buckets) {
                from = 0;
                to = buckets;
            }
        }
        // One stretch of rays, or two where it passes direction 0.
        for (int part = 0; part < 2; ++part) {
            int begin, end;
            if (from < 0) {
                begin = part ? 0 : first_ray[from + buckets];
                end = part ? first_ray[to] : ray_count;
            } else if (to > buckets) {
                begin = part ? 0 : first_ray[from];
                end = part ? first_ray[to - buckets] : ray_count;
            } else {
                if (part) break;
                begin = first_ray[from];
                end = to == buckets ? ray_count : first_ray[to];
            }
            for (int r = begin; r < end; ++r) {
                const Ray ray = rays[r];
                // Frequencies whose sample lies within the kernel's square, a hair more for rounding.
                const float x1 = (x - HALF_WIDTH) * ray.inverse_dx, x2 = (x + HALF_WIDTH) * ray.inverse_dx;
                const float y1 = (y - HALF_WIDTH) * ray.inverse_dy, y2 = (y + HALF_WIDTH) * ray.inverse_dy;
                const float low = fmaxf(fminf(x1, x2), fminf(y1, y2)) - 0.01f, high = fminf(fmaxf(x1, x2), fmaxf(y1, y2)) + 0.01f;
                const int first = max(static_cast<int>(ceilf(fminf(fmaxf(low, -1e9f), 1e9f))), -half);
                const int last = min(static_cast<int>(floorf(fmaxf(fminf(high, 1e9f), -1e9f))), half);
                const float2* line = samples + (static_cast<unsigned long long>(r) * static_cast<unsigned>(padded + 1) + static_cast<unsigned>(half)) * PAIRS;
                for (int m = first; m <= last; ++m) {
                    // The high part's product is exact inside the fused operation, so that the distance is, too.
                    const float f = -static_cast<float>(m);
                    const float dx = fmaf(f, ray.dx_low, fmaf(f, ray.dx_high, x));
                    const float dy = fmaf(f, ray.dy_low, fmaf(f, ray.dy_high, y));
                    if (fabsf(dx) >= HALF_WIDTH || fabsf(dy) >= HALF_WIDTH) continue;
                    float taper = 1.0f;
                    const float power = exponent(dx, taper) + exponent(dy, taper);
                    const float weight = exp2f(beta * power) * taper;
                    const float2* sample = line + static_cast<long long>(m) * PAIRS;
#if PAIRS == 1
                    sums[0].x = fmaf(weight, sample[0].x, sums[0].x);
                    sums[0].y = fmaf(weight, sample[0].y, sums[0].y);
#else
#pragma unroll
                    for (int p = 0; p < PAIRS; p += 2) {
                        const float4 two = *reinterpret_cast<const float4*>(sample + p);
                        sums[p].x = fmaf(weight, two.x, sums[p].x);
                        sums[p].y = fmaf(weight, two.y, sums[p].y);
                        sums[p + 1].x = fmaf(weight, two.z, sums[p + 1].x);
                        sums[p + 1].y = fmaf(weight, two.w, sums[p + 1].y);
                    }
#endif
                }
            }
        }
    }
    const unsigned long long plane = static_cast<unsigned long long>(edge) * static_cast<unsigned>(edge);
    const unsigned long long at = static_cast<unsigned long long>(row) * static_cast<unsigned>(edge) + static_cast<unsigned>(column);
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) grids[static_cast<unsigned>(p) * plane + at] = sums[p];
}

// Transformed grids to images [row, y, x]: cut out, divided by the kernel's transform, masked outside the circle of
// squared radius `radius2` (negative: no mask), scaled. Grid (blocks along x, y, PAIRS).
KERNEL void finish(const float2* __restrict__ grids, float* __restrict__ images, const float* __restrict__ deapodise,
                   unsigned count, unsigned size, unsigned edge, double radius2, float factor) {
    const unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, pair = blockIdx.z;
    if (x >= size) return;
    const unsigned half = size / 2;
    const unsigned gx = x >= half ? x - half : edge + x - half, gy = y >= half ? y - half : edge + y - half;
    const double across = x - (size - 1) * 0.5, down = y - (size - 1) * 0.5;
    const bool inside = radius2 < 0.0 || across * across <= radius2 - down * down;
    const float scale = deapodise[y] * deapodise[x] * factor;
    const float2 v = grids[(static_cast<unsigned long long>(pair) * edge + gy) * edge + gx];
    const unsigned long long plane = static_cast<unsigned long long>(size) * size, at = static_cast<unsigned long long>(y) * size + x;
    if (2 * pair < count) images[2 * pair * plane + at] = inside ? v.x * scale : 0.0f;
    if (2 * pair + 1 < count) images[(2 * pair + 1) * plane + at] = inside ? v.y * scale : 0.0f;
}
