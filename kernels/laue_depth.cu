// Coded aperture: the photon energy, and which depths a footprint comes from. Twins: steps 6 to 8 of
// src/technique/laue/decode.rs and src/technique/laue/depth.rs; all of it in f64, as there.
//
// Arrays are [listed, …]. Sums have a fixed order: bitwise repeatable.
#include "common.h"

// Sum over the block, the same in all threads; `part` holds a value a warp.
DEVICE double block_sum(double v, double* part) {
    for (int by = 16; by > 0; by /= 2) v += __shfl_xor_sync(0xffffffffu, v, by);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    double all = 0.0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) all += part[w];
    __syncthreads();
    return all;
}

// Transmission at sample `at`, which may lie beyond the mask, with optical depth `tau` of closed gold; linear in the cover when
// that is negative, which says that it is not known.
DEVICE double transmission(const float* cover, int at, int samples, double tau) {
    const double c = at >= 0 && at < samples ? static_cast<double>(cover[at]) : 0.0;
    return tau < 0.0 ? 1.0 - c : exp(-tau * c);
}

// Counts of every cell of the window, out of the splines' coefficients; cell u of column c is basis[u − c·knots].
DEVICE double cell_of(const double* x, const double* basis, int u, int support, int columns, int knots) {
    double sum = 0.0;
    for (int c = 0; c < columns; ++c) {
        const int b = u - c * knots;
        if (b >= 0 && b < support && x[c] > 0.0) sum += x[c] * basis[b];
    }
    return sum;
}

// Step 6, a block a listed pixel: the energy whose transmission explains the data best; writes its optical depth to `taus` (−1:
// none) and itself to `kev` (NaN). `solutions`: footprint fitted with transmission linear in the cover; null: the expected
// box of `widths[template]` samples. `paths`: µm of gold in the way. Dynamic shared memory: length + 2 · window doubles.
KERNEL void laue_energy(const float* __restrict__ covers, const float* __restrict__ data, const int* __restrict__ templates,
                        const int* __restrict__ lengths, const int* __restrict__ offsets, const double* __restrict__ paths,
                        const double* __restrict__ widths, const double* solutions, const double* __restrict__ basis,
                        const double* __restrict__ energies, const double* __restrict__ attenuations, double* __restrict__ taus,
                        float* __restrict__ kev, int choices, int known_background, double background, int samples, int stride,
                        int window, int support, int columns, int knots) {
    DYNAMIC_SHARED(double, shared);
    __shared__ double part[32];
    const unsigned listed = blockIdx.x;
    const int offset = offsets[listed];
    if (offset < 0) return;
    const int length = lengths[listed], all = length + window, me = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    double *open = shared, *shape = shared + all;
    const float* cover = covers + static_cast<unsigned long long>(templates[listed]) * static_cast<unsigned>(samples);
    const float* d = data + static_cast<unsigned long long>(listed) * static_cast<unsigned>(stride);
    const double width = widths[templates[listed]], half_box = fmax(width, 1.0) / 2.0;
    // The weights of the window's cells around a sample; a box beyond the window's ends goes on with the end values.
    const int half = window / 2;
    double total = 0.0;
    if (solutions) {
        const double* x = solutions + static_cast<unsigned long long>(listed) * static_cast<unsigned>(columns + 1);
        for (int u = me; u < window; u += threads) {
            shape[u] = cell_of(x, basis, u, support, columns, knots);
            total += shape[u];
        }
        total = block_sum(total, part);
        for (int u = me; u < window; u += threads) shape[u] = total > 0.0 ? shape[u] / total : 0.0;
    }
    const bool box = !solutions || !(total > 0.0);
    const double n = static_cast<double>(length), path = paths[listed];
    double best = 0.0;
    int which = -1;
    for (int e = 0; e < choices; ++e) {
        // Nobody still reads: the sums below are behind the block's barriers.
        const double tau = attenuations[e] * path;
        for (int i = me; i < all; i += threads) open[i] = transmission(cover, offset - half + i, samples, tau);
        __syncthreads();
        double s = 0.0, ss = 0.0, v = 0.0, vv = 0.0, sv = 0.0;
        for (int j = me; j < length; j += threads) {
            double model = 0.0;
            if (box) {
                const double middle = static_cast<double>(j + half) + 0.5, low = middle - half_box, high = middle + half_box;
                const int last = static_cast<int>(ceil(high));
                for (int i = static_cast<int>(floor(low)); i < last; ++i) {
                    const double inside = fmin(high, i + 1.0) - fmax(low, static_cast<double>(i));
                    model += fmax(inside, 0.0) * open[min(max(i, 0), all - 1)];
                }
                model /= 2.0 * half_box;
            } else {
                for (int u = 0; u < window; ++u) model += shape[u] * open[j + u];
            }
            const double value = static_cast<double>(d[j]);
            s += model;
            ss += model * model;
            v += value;
            vv += value * value;
            sv += model * value;
        }
        s = block_sum(s, part);
        ss = block_sum(ss, part);
        v = block_sum(v, part);
        vv = block_sum(vv, part);
        sv = block_sum(sv, part);
        const double variance = known_background ? ss : ss - s * s / n;
        const double covariance = known_background ? sv - background * s : sv - s * v / n;
        const double whole = known_background ? vv - 2.0 * background * v + n * background * background : vv - v * v / n;
        if (variance <= 1e-9 * n) continue;
        const double up = fmax(covariance, 0.0), left = whole - up * up / variance;
        if (which < 0 || left < best) {
            best = left;
            which = e;
        }
    }
    if (me == 0) {
        taus[listed] = which < 0 ? -1.0 : attenuations[which] * path;
        kev[listed] = which < 0 ? __int_as_float(0x7fc00000) : static_cast<float>(energies[which]);
    }
}

// The depth grid: where it begins, width of a bin, bins.
struct Grid {
    double start, step;
    int bins;
};

DEVICE int bin_of(const Grid& grid, double depth) {
    const double at = floor((depth - grid.start) / grid.step);
    return static_cast<int>(fmin(fmax(at, 0.0), static_cast<double>(grid.bins - 1)));
}

// Share of an even spread from `low` to `high` that lies before `z`.
DEVICE double share_before(double z, double low, double high) {
    if (z <= low) return 0.0;
    const double width = high - low;
    return z >= high || width <= 0.0 ? 1.0 : (z - low) / width;
}

// Steps 7 and 8 to their end, a block a listed pixel: what is left of the data, whether the pixel is ambiguous, and its counts
// over depth. Each bin gathers from the window's cells in their order, as the twin deposits them. `fitted`: splines, else a
// box. Results [listed]: intensity, out_of_range; maps [4, listed]: position, depth, residual, confidence; flags (8 ambiguous,
// 16 out of range). `stack` [depth, pixel] holds 0 before. Depth of code p: (a₀ + a₁p)/(b₀ + b₁p), `depths` [4, listed].
// Dynamic shared memory: 4 · window doubles.
KERNEL void laue_deposit(const float* __restrict__ data, const double* __restrict__ splined, const double* __restrict__ solutions,
                         const double* __restrict__ basis, const int* __restrict__ places, const int* __restrict__ templates,
                         const int* __restrict__ lengths, const int* __restrict__ offsets, const double* __restrict__ found,
                         const double* __restrict__ means, const double* __restrict__ widths, const double* __restrict__ taus,
                         const double* __restrict__ depths, const double* __restrict__ behind, float* __restrict__ stack,
                         double* __restrict__ intensities, double* __restrict__ outside, float* __restrict__ maps, int* __restrict__ flags,
                         double start, double bin_um, int bins, unsigned pixels, double resolution, double margin, int apart, int fitted,
                         int frames, int samples, int stride, int window, int support, int columns, int knots) {
    DYNAMIC_SHARED(double, shared);
    __shared__ double part[32];
    const unsigned listed = blockIdx.x, count = gridDim.x;
    const int me = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const float nan = __int_as_float(0x7fc00000);
    const int offset = offsets[listed];
    if (offset < 0) {
        if (me == 0) {
            intensities[listed] = outside[listed] = 0.0;
            for (unsigned m = 0; m < 4; ++m) maps[m * count + listed] = nan;
            flags[listed] = 8;
        }
        return;
    }
    double *cell = shared, *low = shared + window, *high = shared + 2 * window, *lost = shared + 3 * window;
    const int length = lengths[listed], n = columns + 1;
    const double width = widths[templates[listed]], mean = means[listed], tau = taus[listed], back = behind[listed];
    const float* d = data + static_cast<unsigned long long>(listed) * static_cast<unsigned>(stride);
    const double* x = solutions + static_cast<unsigned long long>(listed) * static_cast<unsigned>(n);
    double total = 0.0, left = 0.0;
    if (fitted) {
        const double* g = splined + static_cast<unsigned long long>(listed) * static_cast<unsigned>(stride + window);
        for (int u = me; u < window; u += threads) total += cell[u] = cell_of(x, basis, u, support, columns, knots);
        total = block_sum(total, part);
        for (int j = me; j < length; j += threads) {
            double model = 0.0;
            for (int c = 0; c < columns; ++c)
                if (x[c] > 0.0) model += x[c] * g[c * knots + j];
            const double l = static_cast<double>(d[j]) - model - x[columns];
            left += l * l;
        }
        left = block_sum(left, part);
    } else {
        const double amount = found[3 * count + listed] / (1.0 - (tau < 0.0 ? 0.0 : exp(-tau)));
        const double half = static_cast<double>(window) / 2.0;
        for (int u = me; u < window; u += threads) {
            const double from = static_cast<double>(u) - half;
            const double inside = fmax(fmin(from + 1.0, width / 2.0 + 0.5) - fmax(from, 0.5 - width / 2.0), 0.0);
            total += cell[u] = inside / width * amount;
        }
        total = block_sum(total, part);
        left = found[count + listed];
    }
    const double l = static_cast<double>(length), share = static_cast<double>(frames) / l;
    const double best = found[count + listed], rival = found[2 * count + listed];
    // What is left beyond Poisson's variance is alike over the length of a footprint: so many samples of it are one measurement.
    const double excess = fmax(best / l - mean, 0.0);
    const double noise = fmax(mean + excess * fmax(0.5 * width, 1.0), 2.2250738585072014e-308);
    const double confidence = share * (rival - best) / noise;
    const double p = found[listed] * resolution - back;
    const double a0 = depths[listed], a1 = depths[count + listed], b0 = depths[2 * count + listed], b1 = depths[3 * count + listed];
    const float depth = static_cast<float>((a0 + a1 * p) / (b0 + b1 * p));
    const Grid grid = {start, bin_um, bins};
    const bool at_an_end = offset < 2 * apart || offset + length + 2 * apart > samples;
    const bool ambiguous = !(confidence >= margin) || at_an_end;
    const double end = start + static_cast<double>(bins) * bin_um;
    const bool outside_grid = !(static_cast<double>(depth) >= start && static_cast<double>(depth) < end);
    if (me == 0) {
        intensities[listed] = total;
        maps[listed] = static_cast<float>(p);
        maps[count + listed] = depth;
        maps[2 * count + listed] = static_cast<float>(share * left / (mean * fmax(static_cast<double>(frames) - 3.0, 1.0)));
        maps[3 * count + listed] = static_cast<float>(confidence);
        flags[listed] = ambiguous ? 8 : outside_grid ? 16 : 0;
        outside[listed] = 0.0;
    }
    if (ambiguous) return;
    // Cell u of the footprint is the sample offset + u − window/2.
    for (int u = me; u < window; u += threads) {
        const double at = static_cast<double>(offset - window / 2 + u) * resolution - back;
        const double q = at - resolution / 2.0, r = at + resolution / 2.0;
        const double a = (a0 + a1 * q) / (b0 + b1 * q), b = (a0 + a1 * r) / (b0 + b1 * r);
        low[u] = a <= b ? a : b;
        high[u] = a <= b ? b : a;
        lost[u] = 0.0;
        if (!(cell[u] > 0.0)) continue;
        if (high[u] <= start || low[u] >= end) {
            lost[u] = cell[u];
            cell[u] = 0.0;
        } else {
            const double before = share_before(start + bin_of(grid, low[u]) * bin_um, low[u], high[u]);
            const double behind_it = 1.0 - share_before(start + (bin_of(grid, high[u]) + 1) * bin_um, low[u], high[u]);
            lost[u] = cell[u] * (before + behind_it);
        }
    }
    __syncthreads();
    int first = bins, last = -1;
    double out = 0.0;
    for (int u = 0; u < window; ++u) {
        out += lost[u];
        if (!(cell[u] > 0.0)) continue;
        first = min(first, bin_of(grid, low[u]));
        last = max(last, bin_of(grid, high[u]));
    }
    for (int m = first + me; m <= last; m += threads) {
        double sum = 0.0;
        for (int u = 0; u < window; ++u) {
            if (!(cell[u] > 0.0) || m < bin_of(grid, low[u]) || m > bin_of(grid, high[u])) continue;
            sum += cell[u] * (share_before(start + (m + 1) * bin_um, low[u], high[u]) - share_before(start + m * bin_um, low[u], high[u]));
        }
        stack[static_cast<unsigned long long>(m) * pixels + static_cast<unsigned>(places[listed])] = static_cast<float>(sum);
    }
    if (me == 0) outside[listed] = out;
}
