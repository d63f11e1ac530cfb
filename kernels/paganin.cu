// Paganin's filter on transmission, all but its Fourier transforms. Twin: src/technique/tomography/paganin.rs, which has the
// formula, the units, and how a frame is continued beyond its edges.
//
// As there, a line is placed with its even elements first and its odd ones backwards after them, so that its cosine
// transform is C_k = Re e^{−iπk/2N} F_k with F the Fourier transform of what is placed. C need not be written down: when
// gains g_k multiply it, what becomes of F is
//     F'_k = ½ (g_k + g_{N−k}) F_k + ½ (g_k − g_{N−k}) e^{iπk/N} F_{−k},
// and along two axes a sum of four terms of that kind. That is linear in F, so two frames share one complex array and need
// not be told apart. Layout: frames [frame, y, x], cells [pair, high, wide]. Precision: f32. Bitwise repeatable.
#include "common.h"

// Places frames: `from_y`, `from_x` name the pixel that stands in each cell; frames that do not exist count as 0. Grid
// (blocks along wide, high, pairs).
KERNEL void place_frames(const float* __restrict__ frames, float2* __restrict__ cells, const unsigned* __restrict__ from_y,
                         const unsigned* __restrict__ from_x, unsigned count, unsigned rows, unsigned columns, unsigned wide) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x, pair = blockIdx.z;
    if (k >= wide) return;
    const unsigned long long frame = static_cast<unsigned long long>(rows) * columns;
    const float* at = frames + 2 * pair * frame + static_cast<unsigned long long>(from_y[blockIdx.y]) * columns + from_x[k];
    float2 v = make_float2(0.0f, 0.0f);
    if (2 * pair < count) v.x = at[0];
    if (2 * pair + 1 < count) v.y = at[frame];
    cells[(static_cast<unsigned long long>(pair) * gridDim.y + blockIdx.y) * wide + k] = v;
}

DEVICE float2 times(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
DEVICE float2 mirrored(float2 a) { return make_float2(a.x, -a.y); }

// The four terms of one cell.
DEVICE float2 damped(float2 own, float2 down, float2 across, float2 both, float4 gains, float2 turn_down, float2 turn_across) {
    const float2 d = times(turn_down, down), a = times(turn_across, across), b = times(times(turn_down, turn_across), both);
    return make_float2(fmaf(gains.w, b.x, fmaf(gains.z, a.x, fmaf(gains.y, d.x, gains.x * own.x))),
                       fmaf(gains.w, b.y, fmaf(gains.z, a.y, fmaf(gains.y, d.y, gains.x * own.y))));
}

// Multiplies transforms by `scale / (1 + down_squares[j] + across_squares[k])`, gains on the cosine transform, in place. A
// thread takes a cell and its mirror images, which no other thread touches. Turns: e^{iπj/high} for j ≤ high/2, and as much
// across. Grid (blocks along wide/2 + 1, high/2 + 1, pairs).
KERNEL void damp_frames(float2* __restrict__ cells, const float* __restrict__ down_squares, const float* __restrict__ across_squares,
                        const float2* __restrict__ down_turns, const float2* __restrict__ across_turns, unsigned high, unsigned wide, float scale) {
    const unsigned k = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y;
    if (k > wide / 2) return;
    // Frequency 0 has no partner: whatever gain stands for one drops out.
    const unsigned far_k = k ? wide - k : 0, far_j = j ? high - j : 0;
    const float near_down = 1.0f + down_squares[j], far_down = 1.0f + down_squares[far_j];
    const float near_across = across_squares[k], far_across = across_squares[far_k];
    const float nn = scale / (near_down + near_across), fn = scale / (far_down + near_across);
    const float nf = scale / (near_down + far_across), ff = scale / (far_down + far_across);
    const float4 gains = make_float4(0.25f * ((nn + fn) + (nf + ff)), 0.25f * ((nn - fn) + (nf - ff)),
                                     0.25f * ((nn - nf) + (fn - ff)), 0.25f * ((nn - fn) - (nf - ff)));
    float2* plane = cells + static_cast<unsigned long long>(blockIdx.z) * high * wide;
    float2* near_line = plane + static_cast<unsigned long long>(j) * wide;
    float2* far_line = plane + static_cast<unsigned long long>(far_j) * wide;
    const float2 own = near_line[k], down = far_line[k], across = near_line[far_k], both = far_line[far_k];
    const float2 turn_down = down_turns[j], turn_across = across_turns[k];
    near_line[k] = damped(own, down, across, both, gains, turn_down, turn_across);
    if (far_j != j) far_line[k] = damped(down, own, both, across, gains, mirrored(turn_down), turn_across);
    if (far_k != k) near_line[far_k] = damped(across, both, own, down, gains, turn_down, mirrored(turn_across));
    if (far_j != j && far_k != k) far_line[far_k] = damped(both, across, down, own, gains, mirrored(turn_down), mirrored(turn_across));
}

// Takes frames back: `to_y`, `to_x` name the cell that holds each pixel. Grid (blocks along columns, rows, pairs).
KERNEL void take_frames(const float2* __restrict__ cells, float* __restrict__ frames, const unsigned* __restrict__ to_y,
                        const unsigned* __restrict__ to_x, unsigned count, unsigned columns, unsigned high, unsigned wide) {
    const unsigned u = blockIdx.x * blockDim.x + threadIdx.x, rows = gridDim.y, pair = blockIdx.z;
    if (u >= columns) return;
    const float2 v = cells[(static_cast<unsigned long long>(pair) * high + to_y[blockIdx.y]) * wide + to_x[u]];
    const unsigned long long frame = static_cast<unsigned long long>(rows) * columns;
    float* at = frames + 2 * pair * frame + static_cast<unsigned long long>(blockIdx.y) * columns + u;
    if (2 * pair < count) at[0] = v.x;
    if (2 * pair + 1 < count) at[frame] = v.y;
}
