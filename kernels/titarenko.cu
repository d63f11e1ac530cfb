// Stripe removal by Titarenko's formula. Twin: src/technique/tomography/titarenko.rs, which has the papers and the system.
//
// Sinograms [row, angle, column]; angles in `blocks` blocks, each with offsets of its own. Means, the tridiagonal system and
// its solution in f64, in the twin's order: equal but for the last bit.
#include "common.h"

// Mean of every column over a block's angles: [row, block, column]. Grid (column blocks, blocks, rows).
KERNEL void block_means(const float* __restrict__ sinograms, double* __restrict__ means, unsigned angles, unsigned columns) {
    const unsigned u = blockIdx.x * blockDim.x + threadIdx.x, block = blockIdx.y, blocks = gridDim.y;
    if (u >= columns) return;
    const unsigned first = static_cast<unsigned>(static_cast<unsigned long long>(block) * angles / blocks);
    const unsigned last = static_cast<unsigned>((block + 1ull) * angles / blocks);
    const float* values = sinograms + static_cast<unsigned long long>(blockIdx.z) * angles * columns + u;
    double sum = 0.0;
    for (unsigned a = first; a < last; ++a) sum += static_cast<double>(values[static_cast<unsigned long long>(a) * columns]);
    means[(static_cast<unsigned long long>(blockIdx.z) * blocks + block) * columns + u] = sum / static_cast<double>(last - first);
}

// Offsets of one block's columns, in place of nothing: one thread a system, for each step waits for the one before. `solution`:
// scratch of the shape of `means`; `factors`: inverted eliminated diagonals, one a column.
KERNEL void solve_offsets(const double* __restrict__ means, double* __restrict__ solution, float* __restrict__ offsets,
                          const double* __restrict__ factors, unsigned systems, unsigned columns, double alpha) {
    const unsigned system = blockIdx.x * blockDim.x + threadIdx.x;
    if (system >= systems) return;
    const unsigned long long at = static_cast<unsigned long long>(system) * columns;
    double last = 0.0;
    for (unsigned u = 0; u < columns; ++u) {
        last = (alpha * means[at + u] + last) * factors[u];
        solution[at + u] = last;
    }
    double above = 0.0;
    for (unsigned u = columns; u-- > 0;) {
        above = solution[at + u] + above * factors[u];
        offsets[at + u] = static_cast<float>(means[at + u] - above);
    }
}

// Takes every block's offsets from its angles. Grid (column blocks, angles, rows).
KERNEL void subtract_offsets(float* __restrict__ sinograms, const float* __restrict__ offsets, unsigned blocks, unsigned columns) {
    const unsigned u = blockIdx.x * blockDim.x + threadIdx.x, angle = blockIdx.y, angles = gridDim.y;
    if (u >= columns) return;
    // The block whose stretch ⌊b·angles/blocks⌋ … holds the angle.
    unsigned block = static_cast<unsigned>(static_cast<unsigned long long>(angle) * blocks / angles);
    while (block + 1 < blocks && (block + 1ull) * angles / blocks <= angle) ++block;
    const float offset = offsets[(static_cast<unsigned long long>(blockIdx.z) * blocks + block) * columns + u];
    sinograms[(static_cast<unsigned long long>(blockIdx.z) * angles + angle) * columns + u] -= offset;
}
