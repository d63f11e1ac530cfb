// Columns sorted along the angle, for stripe removal. Twin: `Work::rank` of src/technique/tomography/stripe.rs, equal bit for
// bit.
//
// A block of T = 32, 64, 128 or 256 threads sorts one column [row, column, angle] of up to T · KEYS values: bitonic, thread t holding the
// elements t · KEYS … in registers. Strides below KEYS stay in registers, those below 32 · KEYS go by shuffles, the few others
// through shared memory. A key is the value as an integer that orders alike, and below it the angle: ties keep their order.
#include "common.h"

#ifndef KEYS
#define KEYS 8
#endif
static_assert((KEYS & (KEYS - 1)) == 0 && KEYS >= 1 && KEYS <= 64, "a power of two of keys in registers");

typedef unsigned long long Key;

DEVICE Key lesser(Key a, Key b) { return a < b ? a : b; }
DEVICE Key greater(Key a, Key b) { return a < b ? b : a; }

// Output: values in ascending order, and the angle each came from. Block (line); dynamic shared memory: T · KEYS keys.
KERNEL void rank_columns(const float* __restrict__ values, float* __restrict__ ranked, unsigned* __restrict__ origin, unsigned angles) {
    DYNAMIC_SHARED(Key, exchange);
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * angles;
    const unsigned t = threadIdx.x, threads = blockDim.x, first = t * KEYS;
    Key keys[KEYS];
#pragma unroll
    for (unsigned j = 0; j < KEYS; ++j) {
        // The signed key with its sign turned orders as an unsigned number.
        const unsigned i = first + j;
        keys[j] = ~0ull;
        if (i < angles) keys[j] = static_cast<Key>(static_cast<unsigned>(key_of(values[at + i])) ^ 0x80000000u) << 32 | i;
    }
    for (unsigned size = 2; size <= threads * KEYS; size *= 2) {
        for (unsigned stride = size / 2; stride >= KEYS && stride > 0; stride /= 2) {
            // Element i meets i ^ stride: the same place in another thread.
            const unsigned by = stride / KEYS;
            if (by >= 32) {
                __syncthreads();
#pragma unroll
                for (unsigned j = 0; j < KEYS; ++j) exchange[j * threads + t] = keys[j];
                __syncthreads();
            }
#pragma unroll
            for (unsigned j = 0; j < KEYS; ++j) {
                const unsigned i = first + j;
                const Key other = by >= 32 ? exchange[j * threads + (t ^ by)] : __shfl_xor_sync(0xffffffffu, keys[j], by);
                const bool least = ((i & size) == 0) == ((i & stride) == 0);
                keys[j] = least ? lesser(keys[j], other) : greater(keys[j], other);
            }
        }
#pragma unroll
        for (unsigned stride = KEYS / 2; stride > 0; stride /= 2) {
            if (stride > size / 2) continue;
#pragma unroll
            for (unsigned j = 0; j < KEYS; ++j) {
                if (j & stride) continue;
                const Key a = keys[j], b = keys[j | stride];
                const bool ascending = ((first + j) & size) == 0;
                keys[j] = ascending ? lesser(a, b) : greater(a, b);
                keys[j | stride] = ascending ? greater(a, b) : lesser(a, b);
            }
        }
    }
#pragma unroll
    for (unsigned j = 0; j < KEYS; ++j) {
        const unsigned i = first + j;
        if (i < angles) {
            ranked[at + i] = key_value(static_cast<int>(static_cast<unsigned>(keys[j] >> 32) ^ 0x80000000u));
            origin[at + i] = static_cast<unsigned>(keys[j]);
        }
    }
}
