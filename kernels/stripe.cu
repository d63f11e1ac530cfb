// Stripe removal by Vo's combination, all steps but the running medians (median.cu) and the
// sorting (rank.cu). Twin:
// src/technique/tomography/stripe.rs, which names the paper and its algorithms.
//
// Layout: sinograms [row, angle, column]; columns [row, column, angle] (or rank); lists per column [row, column]. Precision:
// values f32; sums, factors and what decides in f64. Sums run in another order than the twin's, so that a column exactly at
// a limit may be judged otherwise; everything else is equal bit for bit. Bitwise repeatable.
#include "common.h"

// [depth, height, width] to [depth, width, height]. Block (32, 8); grid (⌈width/32⌉, ⌈height/32⌉, depth).
KERNEL void transpose(const float* __restrict__ in, float* __restrict__ out, unsigned height, unsigned width) {
    __shared__ float tile[32][33];
    const unsigned long long plane = static_cast<unsigned long long>(blockIdx.z) * height * width;
    const unsigned x = blockIdx.x * 32 + threadIdx.x, y0 = blockIdx.y * 32;
    for (unsigned j = threadIdx.y; j < 32; j += blockDim.y)
        if (x < width && y0 + j < height) tile[j][threadIdx.x] = in[plane + static_cast<unsigned long long>(y0 + j) * width + x];
    __syncthreads();
    const unsigned y = y0 + threadIdx.x, x0 = blockIdx.x * 32;
    for (unsigned j = threadIdx.y; j < 32; j += blockDim.y)
        if (y < height && x0 + j < width) out[plane + static_cast<unsigned long long>(x0 + j) * height + y] = tile[threadIdx.x][j];
}

// Per column, the sum of the absolute differences from the column's running mean over 10 angles (reflected at the ends), in
// `gridDim.y` parts of `stretch` angles: [row, part, column]. Grid (column blocks, parts, rows).
KERNEL void roughness(const float* __restrict__ sinograms, double* __restrict__ parts, unsigned angles, unsigned columns,
                      unsigned stretch) {
    const unsigned u = blockIdx.x * blockDim.x + threadIdx.x;
    if (u >= columns) return;
    const int n = static_cast<int>(angles), first = static_cast<int>(blockIdx.y * stretch);
    const int last = min(first + static_cast<int>(stretch), n);
    const float* line = sinograms + static_cast<unsigned long long>(blockIdx.z) * angles * columns + u;
    auto value = [&](int i) {
        int j = i % (2 * n);
        if (j < 0) j += 2 * n;
        return static_cast<double>(line[static_cast<unsigned long long>(j < n ? j : 2 * n - 1 - j) * columns]);
    };
    double sum = 0.0, total = 0.0;
    for (int i = first - 5; i < first + 5; ++i) sum += value(i);
    for (int i = first; i < last; ++i) {
        total += fabs(value(i) - sum / 10.0);
        sum += value(i + 5) - value(i - 5);
    }
    parts[(static_cast<unsigned long long>(blockIdx.z) * gridDim.y + blockIdx.y) * columns + u] = total;
}

// Sum over the block, the same in every thread and every time. Up to 1024 threads, a multiple of 32.
DEVICE double block_sum(double v, double* scratch) {
    for (int by = 16; by > 0; by /= 2) v += __shfl_xor_sync(0xffffffffu, v, by);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0.0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += scratch[w];
    return sum;
}

// Algorithm 4: which of `n` numbers stand out from the straight line through their sorted middle, each with its
// neighbours. `sorted`: shared, the next power of two.
DEVICE void stripes(const double* list, unsigned char* found, unsigned n, double snr, double* sorted, double* scratch) {
    unsigned padded = 1;
    while (padded < n) padded *= 2;
    const double least = -1.7976931348623157e308;
    for (unsigned i = threadIdx.x; i < padded; i += blockDim.x) sorted[i] = i < n ? list[i] : least;
    // Bitonic, descending.
    for (unsigned size = 2; size <= padded; size *= 2) {
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < padded / 2; i += blockDim.x) {
                const unsigned a = 2 * i - (i & (stride - 1)), b = a + stride;
                const double va = sorted[a], vb = sorted[b];
                if (((a & size) == 0) == (va < vb)) {
                    sorted[a] = vb;
                    sorted[b] = va;
                }
            }
        }
    }
    __syncthreads();
    const unsigned drop = n / 4, fitted = n - 2 * drop;
    const double count = static_cast<double>(fitted), middle_rank = static_cast<double>(drop) + (count - 1.0) / 2.0;
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < fitted; i += blockDim.x) sum += sorted[drop + i];
    const double mean = block_sum(sum, scratch) / count;
    double above = 0.0, below = 0.0;
    for (unsigned i = threadIdx.x; i < fitted; i += blockDim.x) {
        const double rank = static_cast<double>(drop + i) - middle_rank;
        above += rank * (sorted[drop + i] - mean);
        below += rank * rank;
    }
    above = block_sum(above, scratch);
    below = block_sum(below, scratch);
    const double slope = below > 0.0 ? above / below : 0.0;
    const double high = mean - slope * middle_rank, low = high + slope * (static_cast<double>(n) - 1.0);
    const double noise = fmax(fabs(low - high), 1e-6 * fabs(mean));
    const bool bright = noise > 0.0 && fabs(sorted[0] - high) >= snr * noise;
    const bool dark = noise > 0.0 && fabs(sorted[n - 1] - low) >= snr * noise;
    const double margin = 0.5 * noise * snr;
    auto stands_out = [&](unsigned u) { return (bright && list[u] > high + margin) || (dark && list[u] < low - margin); };
    for (unsigned u = threadIdx.x; u < n; u += blockDim.x)
        found[u] = (u > 0 && stands_out(u - 1)) || stands_out(u) || (u + 1 < n && stands_out(u + 1));
    __syncthreads();
}

// Algorithm 6: finds dead columns. A block of a power of two threads a row. Output per column: the good columns left and
// right of it, −1 where it is good itself. `factors`: scratch [row, column]; `found` [row, column]; dynamic shared memory:
// the next power of two of `columns` doubles.
KERNEL void dead_columns(const double* __restrict__ parts, unsigned count, unsigned columns, int width, double snr,
                         double* factors, unsigned char* found, int* __restrict__ left, int* __restrict__ right) {
    DYNAMIC_SHARED(double, sorted);
    __shared__ double scratch[32];
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * columns;
    const double* rows_parts = parts + at * count;
    double* list = factors + at;
    const int n = static_cast<int>(columns), reach = min(width / 2, n - 1);
    for (unsigned u = threadIdx.x; u < columns; u += blockDim.x) {
        double rough = 0.0;
        for (unsigned p = 0; p < count; ++p) rough += rows_parts[static_cast<unsigned long long>(p) * columns + u];
        list[u] = rough;
    }
    __syncthreads();
    // The median of the neighbourhood, in f32 as in the twin; kept in the scratch for sorting until all are known.
    float* even = reinterpret_cast<float*>(sorted);
    auto mirrored = [&](int i) {
        int j = i % (2 * n);
        if (j < 0) j += 2 * n;
        return j < n ? j : 2 * n - 1 - j;
    };
    double sum = 0.0;
    for (int u = static_cast<int>(threadIdx.x); u < n; u += static_cast<int>(blockDim.x)) {
        float median = 0.0f;
        for (int i = -reach; i <= reach; ++i) {
            const float candidate = static_cast<float>(list[mirrored(u + i)]);
            int less = 0, equal = 0;
            for (int j = -reach; j <= reach; ++j) {
                const float other = static_cast<float>(list[mirrored(u + j)]);
                less += other < candidate;
                equal += other == candidate;
            }
            if (less <= reach && reach < less + equal) median = candidate;
        }
        even[u] = median;
        sum += median;
    }
    const double usual = block_sum(sum, scratch) / columns;
    for (unsigned u = threadIdx.x; u < columns; u += blockDim.x) {
        const double e = even[u];
        list[u] = e > 0.0 ? list[u] / e : usual > 0.0 ? list[u] / usual : 1.0;
    }
    __syncthreads();
    unsigned char* marks = found + at;
    stripes(list, marks, columns, snr, sorted, scratch);
    // The outermost columns have nothing beyond them to interpolate from.
    if (threadIdx.x < 2) {
        marks[threadIdx.x] = 0;
        marks[columns - 1 - threadIdx.x] = 0;
    }
    __syncthreads();
    double marked = 0.0;
    for (unsigned u = threadIdx.x; u < columns; u += blockDim.x) marked += marks[u];
    // With a third of the detector found dead it is the finding that is wrong.
    const bool believed = block_sum(marked, scratch) < static_cast<double>(columns / 3);
    for (int u = static_cast<int>(threadIdx.x); u < n; u += static_cast<int>(blockDim.x)) {
        int l = -1, r = -1;
        if (believed && marks[u]) {
            l = u - 1;
            while (marks[l]) --l;
            r = u + 1;
            while (marks[r]) ++r;
        }
        left[at + static_cast<unsigned>(u)] = l;
        right[at + static_cast<unsigned>(u)] = r;
    }
}

// Interpolates dead columns [row, column, angle] in place. Block (line): row · columns + column.
KERNEL void fill_columns(float* values, const int* __restrict__ left, const int* __restrict__ right, unsigned angles, unsigned columns) {
    const unsigned line = blockIdx.x;
    const int l = left[line];
    if (l < 0) return;
    const int u = static_cast<int>(line % columns), r = right[line];
    const float part = static_cast<float>(u - l) / static_cast<float>(r - l);
    float* out = values + static_cast<unsigned long long>(line) * angles;
    const float* low = values + static_cast<unsigned long long>(line - static_cast<unsigned>(u - l)) * angles;
    const float* high = values + static_cast<unsigned long long>(line + static_cast<unsigned>(r - u)) * angles;
    for (unsigned a = threadIdx.x; a < angles; a += blockDim.x) out[a] = low[a] + part * (high[a] - low[a]);
}

// Algorithm 5, first half: the ratio of a column's mean to that of its smoothed self over the kept ranks. Block (line).
KERNEL void stripe_factors(const float* __restrict__ ranked, const float* __restrict__ smooth, double* __restrict__ factors,
                           unsigned angles, unsigned drop) {
    __shared__ double scratch[32];
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * angles;
    double raw = 0.0, even = 0.0;
    for (unsigned i = drop + threadIdx.x; i < angles - drop; i += blockDim.x) {
        raw += ranked[at + i];
        even += smooth[at + i];
    }
    raw = block_sum(raw, scratch);
    even = block_sum(even, scratch);
    const double factor = raw / even;
    // A column whose neighbours are zero on the average has no scale to be brought to; nor may a column turn sign.
    if (threadIdx.x == 0) factors[blockIdx.x] = factor > 0.0 && factor < 1.7976931348623157e308 ? factor : 1.0;
}

// Which factors stand out. A block a row; dynamic shared memory as in `dead_columns`.
KERNEL void large_columns(const double* __restrict__ factors, unsigned char* __restrict__ found, unsigned columns, double snr) {
    DYNAMIC_SHARED(double, sorted);
    __shared__ double scratch[32];
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * columns;
    stripes(factors + at, found + at, columns, snr, sorted, scratch);
}

// Algorithm 5, second half: strong stripes are replaced by the smoothed ranks, the others scaled. Block (line).
KERNEL void scale_columns(float* __restrict__ ranked, const float* __restrict__ smooth, const double* __restrict__ factors,
                          const unsigned char* __restrict__ found, unsigned angles) {
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * angles;
    const bool replace = found[blockIdx.x];
    const float factor = static_cast<float>(factors[blockIdx.x]);
    for (unsigned i = threadIdx.x; i < angles; i += blockDim.x) ranked[at + i] = replace ? smooth[at + i] : ranked[at + i] / factor;
}

// Puts ranks back to the angles they came from. Block (line); dynamic shared memory: `angles` floats.
KERNEL void unrank_columns(const float* __restrict__ smooth, const unsigned* __restrict__ origin, float* __restrict__ values, unsigned angles) {
    DYNAMIC_SHARED(float, line);
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * angles;
    for (unsigned i = threadIdx.x; i < angles; i += blockDim.x) line[origin[at + i]] = smooth[at + i];
    __syncthreads();
    for (unsigned i = threadIdx.x; i < angles; i += blockDim.x) values[at + i] = line[i];
}
