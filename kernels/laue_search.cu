// Coded aperture: which pixels are bright, and where on the mask each of them is. Twins: `Decoder::select`, `resample` of
// src/technique/laue/decode.rs and src/technique/laue/search.rs, which has the formula.
//
// Bright pixels are listed so that eight with the same template follow each other (a *tile*): their correlation with the
// template is a product of a Hankel matrix of the template with a matrix of eight measurements. Sums of measurements in f64;
// the correlation in f32, as the twin's, summed in order of samples: bitwise repeatable, whatever else is in the batch.
#include "common.h"

// Step 1, a thread a pixel: counts [frame, pixel] to means and flags (1 dim, 2 saturated, 4 always the same).
KERNEL void laue_select(const float* __restrict__ counts, double* __restrict__ means, unsigned char* __restrict__ flags,
                        unsigned frames, unsigned pixels, double threshold, double saturation) {
    const unsigned long long pixel = GLOBAL_INDEX;
    if (pixel >= pixels) return;
    const float infinity = __int_as_float(0x7f800000);
    double sum = 0.0;
    float least = infinity, most = -infinity;
    for (unsigned k = 0; k < frames; ++k) {
        const float v = counts[static_cast<unsigned long long>(k) * pixels + pixel];
        sum += static_cast<double>(v);
        least = fminf(least, v);
        most = fmaxf(most, v);
    }
    const double mean = sum / static_cast<double>(frames);
    unsigned bits = 0;
    if (!(mean >= threshold)) bits |= 1u;
    if (static_cast<double>(most) >= saturation) bits |= 2u;
    if (least >= most) bits |= 4u;
    means[pixel] = mean;
    flags[pixel] = static_cast<unsigned char>(bits);
}

// Sum over the block, the same in all threads; `part` holds a value a warp. Fixed order.
DEVICE double block_sum(double v, double* part) {
    for (int by = 16; by > 0; by /= 2) v += __shfl_xor_sync(0xffffffffu, v, by);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    double all = 0.0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) all += part[w];
    __syncthreads();
    return all;
}

// Step 4, a block a listed pixel: the measurement at every sample of the mask, [listed, sample], its average and the sum of
// squares about it. `places`: where the pixel is in `counts`; `steps`: samples a frame; `reversed`: last frame first.
KERNEL void laue_resample(const float* __restrict__ counts, const int* __restrict__ places, const double* __restrict__ steps,
                          const int* __restrict__ lengths, const int* __restrict__ reversed, float* __restrict__ data,
                          double* __restrict__ averages, double* __restrict__ flats, unsigned frames, unsigned pixels, unsigned stride) {
    __shared__ double part[32];
    const unsigned listed = blockIdx.x;
    const float* series = counts + places[listed];
    float* out = data + static_cast<unsigned long long>(listed) * stride;
    const double step = steps[listed], last = static_cast<double>(frames - 1);
    const unsigned length = static_cast<unsigned>(lengths[listed]);
    const bool backwards = reversed[listed] != 0;
    double sum = 0.0;
    for (unsigned j = threadIdx.x; j < length; j += blockDim.x) {
        double t = fmin(static_cast<double>(j) / step, last);
        if (backwards) t = last - t;
        unsigned i = static_cast<unsigned>(t);
        if (i + 2 > frames) i = frames > 1 ? frames - 2 : 0;
        const float part_of = static_cast<float>(t - static_cast<double>(i));
        const float a = series[static_cast<unsigned long long>(i) * pixels];
        const float b = frames > 1 ? series[static_cast<unsigned long long>(i + 1) * pixels] : a;
        // Not fused, so that it is the twin's to the bit.
        const float v = __fadd_rn(a, __fmul_rn(b - a, part_of));
        out[j] = v;
        sum += static_cast<double>(v);
    }
    const double average = block_sum(sum, part) / static_cast<double>(length);
    double flat = 0.0;
    // The same samples as before: each thread reads what it wrote.
    for (unsigned j = threadIdx.x; j < length; j += blockDim.x) {
        const double centred = static_cast<double>(out[j]) - average;
        flat += centred * centred;
    }
    flat = block_sum(flat, part);
    if (threadIdx.x == 0) {
        averages[listed] = average;
        flats[listed] = flat;
    }
}

// Offsets and pixels of a thread, threads of a block, samples that are staged at a time.
#define OFFSETS 8
#define TILE 8
#define THREADS 128
#define STAGE 64

// What a tile is: first listed pixel, how many (1 … 8), template, longest measurement, first offset, the one behind the last.
struct Tile {
    int first, count, which, length, from, to;
};

DEVICE void load_eight(float* to, const float* from) {
    const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// Step 5, the part with all the work: correlation[listed, m − from] = Σ_j (data_j − average) template_{m+j}. Grid (tiles, blocks
// of 1024 offsets), block 128; a thread has 8 offsets of 8 pixels in registers. `span`: offsets of a row of the result.
KERNEL void laue_correlate(const float* __restrict__ templates, const float* __restrict__ data, const double* __restrict__ averages,
                           const int* __restrict__ lengths, const Tile* __restrict__ tiles, float* __restrict__ correlation,
                           unsigned samples, unsigned stride, unsigned span) {
    // Vectors of four, so that they lie where vectors of four can be read.
    __shared__ float4 staged_quads[(THREADS * OFFSETS + STAGE + OFFSETS) / 4];
    __shared__ float4 measured_quads[STAGE * TILE / 4];
    float *staged = reinterpret_cast<float*>(staged_quads), *measured = reinterpret_cast<float*>(measured_quads);
    const Tile tile = tiles[blockIdx.x];
    const int first = tile.from + static_cast<int>(blockIdx.y) * (THREADS * OFFSETS);
    if (first >= tile.to) return;
    const float* expected = templates + static_cast<unsigned long long>(tile.which) * samples;
    float sums[OFFSETS][TILE];
#pragma unroll
    for (int q = 0; q < OFFSETS; ++q) {
#pragma unroll
        for (int p = 0; p < TILE; ++p) sums[q][p] = 0.0f;
    }
    for (int from = 0; from < tile.length; from += STAGE) {
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < THREADS * OFFSETS + STAGE + OFFSETS; i += THREADS) {
            const int at = first + from + i;
            // Measurements have no average: a constant makes no difference, and rounding is least about the middle.
            staged[i] = at < static_cast<int>(samples) ? expected[at] - 0.5f : 0.0f;
        }
        for (int i = static_cast<int>(threadIdx.x); i < STAGE * TILE; i += THREADS) {
            // Neighbouring threads take neighbouring samples of a pixel.
            const int p = i / STAGE, j = from + i % STAGE;
            float v = 0.0f;
            if (p < tile.count && j < lengths[tile.first + p]) {
                const int listed = tile.first + p;
                v = static_cast<float>(static_cast<double>(data[static_cast<unsigned long long>(listed) * stride + static_cast<unsigned>(j)]) - averages[listed]);
            }
            measured[(i % STAGE) * TILE + p] = v;
        }
        __syncthreads();
        const int left = min((tile.length - from + OFFSETS - 1) / OFFSETS * OFFSETS, STAGE);
        // Of the template a thread needs OFFSETS more values for OFFSETS more samples: they slide through a window of registers.
        float window[2 * OFFSETS];
        const float* mine = staged + threadIdx.x * OFFSETS;
        load_eight(window, mine);
        for (int j = 0; j < left; j += OFFSETS) {
            load_eight(window + OFFSETS, mine + j + OFFSETS);
#pragma unroll
            for (int t = 0; t < OFFSETS; ++t) {
                float values[TILE];
                load_eight(values, measured + (j + t) * TILE);
#pragma unroll
                for (int p = 0; p < TILE; ++p) {
#pragma unroll
                    for (int q = 0; q < OFFSETS; ++q) sums[q][p] = fmaf(window[q + t], values[p], sums[q][p]);
                }
            }
#pragma unroll
            for (int q = 0; q < OFFSETS; ++q) window[q] = window[OFFSETS + q];
        }
    }
    const int at = first + static_cast<int>(threadIdx.x) * OFFSETS;
#pragma unroll
    for (int p = 0; p < TILE; ++p) {
        if (p >= tile.count) continue;
        float* row = correlation + static_cast<unsigned long long>(tile.first + p) * span;
#pragma unroll
        for (int q = 0; q < OFFSETS; ++q)
            if (at + q < tile.to) row[at + q - tile.from] = sums[q][p];
    }
}

// Squared difference at an offset, with the best gain and background; `sums`: running sums of the template and its squares.
DEVICE double residual_at(double c, const double* sums, int m, int length, double flat) {
    const double n = static_cast<double>(length);
    const double sum = sums[2 * (m + length)] - sums[2 * m], squares = sums[2 * (m + length) + 1] - sums[2 * m + 1];
    const double variance = squares - sum * sum / n;
    // Less than this is rounding of f32 samples between 0 and 1: the mask is featureless here.
    if (variance < 1e-6 * n) return flat;
    const double up = c > 0.0 ? c : 0.0;
    return flat - up * up / variance;
}

// Step 5, the choice, a block of 128 a listed pixel: offset −1 where none can be chosen, and found [5, listed]: the offset between
// samples, residual, that of the best rival, gain, background. `origins`: offset at which a pixel's row of `correlation`
// begins; `from` … `to`: offsets that are looked at.
KERNEL void laue_position(const float* __restrict__ correlation, const double* __restrict__ sums, const int* __restrict__ templates,
                          const int* __restrict__ lengths, const int* __restrict__ origins, const int* __restrict__ from,
                          const int* __restrict__ to, const double* __restrict__ averages, const double* __restrict__ flats,
                          int* __restrict__ offsets, double* __restrict__ found, unsigned samples, unsigned span, int apart) {
    __shared__ double values[THREADS / 32];
    __shared__ int places[THREADS / 32];
    const unsigned listed = blockIdx.x, count = gridDim.x;
    const int length = lengths[listed], begin = from[listed], end = to[listed];
    const double flat = flats[listed];
    const double* table = sums + static_cast<unsigned long long>(templates[listed]) * (samples + 1) * 2;
    const float* row = correlation + static_cast<unsigned long long>(listed) * span;
    const int origin = origins[listed];
    double best = flat;
    int at = 0x7fffffff;
    for (int m = begin + static_cast<int>(threadIdx.x); m < end; m += THREADS) {
        const double r = residual_at(static_cast<double>(row[m - origin]), table, m, length, flat);
        if (at == 0x7fffffff || r < best) {
            best = r;
            at = m;
        }
    }
    // The least, the first of equal ones. Threads without an offset have `flat` and come last.
    for (int by = 16; by > 0; by /= 2) {
        const double other = __shfl_xor_sync(0xffffffffu, best, by);
        const int where = __shfl_xor_sync(0xffffffffu, at, by);
        if (other < best || (other == best && where < at)) {
            best = other;
            at = where;
        }
    }
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = best;
        places[threadIdx.x / 32] = at;
    }
    __syncthreads();
    best = values[0];
    at = places[0];
    for (int w = 1; w < THREADS / 32; ++w) {
        if (values[w] < best || (values[w] == best && places[w] < at)) {
            best = values[w];
            at = places[w];
        }
    }
    __syncthreads();
    double rival = flat;
    for (int m = begin + static_cast<int>(threadIdx.x); m < end; m += THREADS) {
        if (m - at < apart && at - m < apart) continue;
        rival = fmin(rival, residual_at(static_cast<double>(row[m - origin]), table, m, length, flat));
    }
    for (int by = 16; by > 0; by /= 2) rival = fmin(rival, __shfl_xor_sync(0xffffffffu, rival, by));
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = rival;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < THREADS / 32; ++w) rival = fmin(rival, values[w]);
    offsets[listed] = -1;
    if (begin >= end || !(flat > 0.0)) return;
    const double n = static_cast<double>(length);
    const double sum = table[2 * (at + length)] - table[2 * at];
    const double variance = table[2 * (at + length) + 1] - table[2 * at + 1] - sum * sum / n;
    if (variance < 1e-6 * n) return;
    double refined = static_cast<double>(at);
    if (at > begin && at + 1 < end) {
        const double a = residual_at(static_cast<double>(row[at - 1 - origin]), table, at - 1, length, flat);
        const double c = residual_at(static_cast<double>(row[at + 1 - origin]), table, at + 1, length, flat);
        const double bend = a - 2.0 * best + c;
        if (bend > 0.0) refined += fmin(fmax(0.5 * (a - c) / bend, -0.5), 0.5);
    }
    const double gain = static_cast<double>(row[at - origin]) / variance;
    offsets[listed] = at;
    found[listed] = refined;
    found[count + listed] = fmax(best, 0.0);
    found[2 * count + listed] = fmax(rival, 0.0);
    found[3 * count + listed] = gain;
    found[4 * count + listed] = averages[listed] - gain * sum / n;
}
