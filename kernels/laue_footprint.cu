// Coded aperture: what the footprint along the code is. Twins: step 7 of src/technique/laue/decode.rs and
// src/technique/laue/nnls.rs; all of it in f64, as there.
//
// Arrays are [listed, …]. A listed pixel without an offset (−1) is passed over. Sums have a fixed order: bitwise repeatable.
#include "common.h"

// Transmission at sample `at`, which may lie beyond the mask, with optical depth `tau` of closed gold; linear in the cover when
// that is negative, which says that it is not known.
DEVICE double transmission(const float* cover, int at, int samples, double tau) {
    const double c = at >= 0 && at < samples ? static_cast<double>(cover[at]) : 0.0;
    return tau < 0.0 ? 1.0 - c : exp(-tau * c);
}

// Step 7, normal equations, a block a listed pixel: `splined` (column c of the matrix, row j, is splined[c·knots + j]), gram
// [n, n] with n = columns + 1 (the background is last), and the right-hand side. The first row is summed in full; each
// other entry follows from the one up and left. Dynamic shared memory: length + window and as many again doubles.
KERNEL void laue_normal(const float* __restrict__ covers, const float* __restrict__ data, const int* __restrict__ templates,
                        const int* __restrict__ lengths, const int* __restrict__ offsets, const double* __restrict__ taus,
                        const double* __restrict__ basis, double* __restrict__ splined, double* __restrict__ grams,
                        double* __restrict__ rights, int samples, int stride, int window, int support, int columns, int knots) {
    DYNAMIC_SHARED(double, shared);
    const unsigned listed = blockIdx.x;
    const int offset = offsets[listed];
    if (offset < 0) return;
    const int length = lengths[listed], all = length + window, n = columns + 1, me = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x), values = all - support + 1;
    double *open = shared, *g = shared + all;
    const float* cover = covers + static_cast<unsigned long long>(templates[listed]) * static_cast<unsigned>(samples);
    const float* d = data + static_cast<unsigned long long>(listed) * static_cast<unsigned>(stride);
    double* gram = grams + static_cast<unsigned long long>(listed) * static_cast<unsigned>(n * n);
    double* right = rights + static_cast<unsigned long long>(listed) * static_cast<unsigned>(n);
    double* kept = splined + static_cast<unsigned long long>(listed) * static_cast<unsigned>(stride + window);
    const double tau = taus[listed];
    for (int i = me; i < all; i += threads) open[i] = transmission(cover, offset - window / 2 + i, samples, tau);
    __syncthreads();
    for (int i = me; i < values; i += threads) {
        double sum = 0.0;
        for (int b = 0; b < support; ++b) sum += open[i + b] * basis[b];
        g[i] = sum;
        kept[i] = sum;
    }
    __syncthreads();
    // The first row, and the right-hand side.
    for (int task = me; task < 2 * columns; task += threads) {
        const int c = task < columns ? task : task - columns;
        const double* column = g + c * knots;
        double sum = 0.0;
        if (task < columns) {
            for (int j = 0; j < length; ++j) sum += g[j] * column[j];
            gram[c] = sum;
            gram[c * n] = sum;
        } else {
            for (int j = 0; j < length; ++j) sum += column[j] * static_cast<double>(d[j]);
            right[c] = sum;
        }
    }
    // Down the diagonals, a thread each, the one that summed its first entry; the last thread has the sums of columns, which are the background's row.
    for (int diagonal = me; diagonal <= columns; diagonal += threads) {
        if (diagonal == columns) {
            double sum = 0.0;
            for (int j = 0; j < length; ++j) sum += g[j];
            for (int c = 0; c < columns; ++c) {
                gram[c * n + columns] = sum;
                gram[columns * n + c] = sum;
                for (int i = c * knots; i < (c + 1) * knots && i + length < values; ++i) sum += g[i + length] - g[i];
            }
            double total = 0.0;
            for (int j = 0; j < length; ++j) total += static_cast<double>(d[j]);
            right[columns] = total;
            gram[columns * n + columns] = static_cast<double>(length);
            continue;
        }
        double value = gram[diagonal];
        for (int c = 1; c + diagonal < columns; ++c) {
            for (int i = (c - 1) * knots; i < c * knots; ++i) {
                const int o = i + diagonal * knots;
                value += g[i + length] * g[o + length] - g[i] * g[o];
            }
            gram[c * n + c + diagonal] = value;
            gram[(c + diagonal) * n + c] = value;
        }
    }
}

// A warp's working memory for `n` coefficients, in doubles and then integers.
#define NNLS_DOUBLES 6

// Non-negative least squares by Lawson & Hanson, a warp a listed pixel: x minimises xᵀGx/2 − xᵀb, x ≥ 0. `factors` [n, n]:
// Cholesky factor of the passive part, in the order in which columns became passive; entry (i, j), i ≥ j, is kept at both
// (i, j) and (j, i), so that rows and columns are read side by side. Where the twin makes the factor anew in every step, here rows that are still
// right are kept: the same numbers. Blocks of whole warps; dynamic shared memory: a warp, 6 n doubles and 2 n integers.
KERNEL void laue_nnls(const double* __restrict__ grams, const double* __restrict__ rights, const int* __restrict__ offsets,
                      double* factors, double* __restrict__ solutions, int* __restrict__ steps_taken, unsigned count, int n) {
    DYNAMIC_SHARED(double, shared);
    const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32, listed = blockIdx.x * warps + warp;
    const int lane = static_cast<int>(threadIdx.x % 32);
    if (listed >= count || offsets[listed] < 0) return;
    double* mine = shared + warp * static_cast<unsigned>(NNLS_DOUBLES * n);
    double *x = mine, *row = mine + n, *forward = mine + 2 * n, *rest = mine + 3 * n, *trial = mine + 4 * n, *inverse = mine + 5 * n;
    int* passive = reinterpret_cast<int*>(shared + warps * static_cast<unsigned>(NNLS_DOUBLES * n)) + warp * static_cast<unsigned>(2 * n);
    int* is_passive = passive + n;
    const double* gram = grams + static_cast<unsigned long long>(listed) * static_cast<unsigned>(n * n);
    const double* right = rights + static_cast<unsigned long long>(listed) * static_cast<unsigned>(n);
    double* factor = factors + static_cast<unsigned long long>(listed) * static_cast<unsigned>(n * n);
    double scale = 0.0;
    for (int i = lane; i < n; i += 32) {
        x[i] = 0.0;
        is_passive[i] = 0;
        scale = fmax(scale, fabs(right[i]));
    }
    for (int by = 16; by > 0; by /= 2) scale = fmax(scale, __shfl_xor_sync(0xffffffffu, scale, by));
    const double tolerance = 1e-9 * scale;
    // Passive columns, and rows of the factor that are right.
    int held = 0, valid = 0, steps = 0;
    bool ended = false;
    while (!ended && steps < 3 * n) {
        ++steps;
        double best = tolerance;
        int which = n;
        for (int i = lane; i < n; i += 32) {
            double g = right[i];
            for (int k = 0; k < held; ++k) {
                const int c = passive[k];
                g -= x[c] * gram[c * n + i];
            }
            if (!is_passive[i] && g > best) {
                best = g;
                which = i;
            }
        }
        for (int by = 16; by > 0; by /= 2) {
            const double other = __shfl_xor_sync(0xffffffffu, best, by);
            const int where = __shfl_xor_sync(0xffffffffu, which, by);
            if (other > best || (other == best && where < which)) {
                best = other;
                which = where;
            }
        }
        if (which >= n) break;
        // All lanes write the same: what each of them then reads is its own.
        passive[held] = which;
        is_passive[which] = 1;
        ++held;
        bool first = true;
        for (;;) {
            // Rows of the factor, and of the forward solution, that are missing.
            bool definite = true;
            for (; definite && valid < held; ++valid) {
                const int i = valid, own = passive[i];
                for (int j = lane; j <= i; j += 32) row[j] = gram[own * n + passive[j]];
                double sum = right[own];
                for (int m = 0; m < i; ++m) {
                    __syncwarp();
                    const double y = row[m] * inverse[m];
                    sum -= y * forward[m];
                    for (int j = m + 1 + lane; j <= i; j += 32) row[j] -= y * (j == i ? y : factor[m * n + j]);
                    if (lane == 0) factor[m * n + i] = factor[i * n + m] = y;
                }
                __syncwarp();
                const double pivot = row[i];
                definite = pivot > 1e-13 * gram[own * n + own];
                if (definite && lane == 0) {
                    const double root = sqrt(pivot);
                    factor[i * n + i] = root;
                    inverse[i] = 1.0 / root;
                    forward[i] = sum / root;
                }
                __syncwarp();
            }
            if (!definite) {
                // The new column is, to rounding, a combination of the others: it cannot improve the fit.
                ended = true;
                break;
            }
            for (int i = lane; i < held; i += 32) rest[i] = forward[i];
            for (int j = held - 1; j >= 0; --j) {
                __syncwarp();
                const double t = rest[j] * inverse[j];
                if (lane == 0) trial[j] = t;
                for (int i = lane; i < j; i += 32) rest[i] -= factor[j * n + i] * t;
            }
            __syncwarp();
            // Rounding: the column just added must go up, or the step would not end.
            if (first && !(trial[held - 1] > 0.0)) {
                ended = true;
                break;
            }
            first = false;
            double alpha = 1.0;
            for (int i = lane; i < held; i += 32) {
                const double t = trial[i], have = x[passive[i]];
                if (t <= 0.0) alpha = fmin(alpha, have / (have - t));
            }
            for (int by = 16; by > 0; by /= 2) alpha = fmin(alpha, __shfl_xor_sync(0xffffffffu, alpha, by));
            double most = 0.0;
            for (int i = lane; i < held; i += 32) {
                const int c = passive[i];
                x[c] += alpha * (trial[i] - x[c]);
                most = fmax(most, x[c]);
            }
            __syncwarp();  // shuffles order threads, not memory
            if (alpha >= 1.0) break;
            for (int by = 16; by > 0; by /= 2) most = fmax(most, __shfl_xor_sync(0xffffffffu, most, by));
            const double floor_of = 1e-14 * most;
            int stays = 0, unchanged = 0;
            if (lane == 0) {
                unchanged = held;
                for (int i = 0; i < held; ++i) {
                    const int c = passive[i];
                    if (x[c] > floor_of) {
                        passive[stays++] = c;
                    } else {
                        if (unchanged == held) unchanged = i;
                        x[c] = 0.0;
                        is_passive[c] = 0;
                    }
                }
            }
            held = __shfl_sync(0xffffffffu, stays, 0);
            valid = min(valid, __shfl_sync(0xffffffffu, unchanged, 0));
            __syncwarp();  // shuffles order threads, not memory
            if (held == 0) break;
        }
    }
    double* out = solutions + static_cast<unsigned long long>(listed) * static_cast<unsigned>(n);
    for (int i = lane; i < n; i += 32) out[i] = x[i];
    if (lane == 0) steps_taken[listed] = steps;
}
