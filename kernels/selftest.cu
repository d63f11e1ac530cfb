// What a device must do right before it is trusted, and what measures its ceilings.
#include "common.h"

// Sum of the hashes of 0 … count − 1, modulo 2³²: uses arithmetic, shuffles, shared memory, a barrier and an atomic, and has
// one right answer. `to` starts as 0. Blocks of a multiple of 32 threads.
DEVICE unsigned hash_of(unsigned v) {
    v = (v ^ v >> 16) * 0x7feb352du;
    v = (v ^ v >> 15) * 0x846ca68bu;
    return v ^ v >> 16;
}
KERNEL void selftest_sum(unsigned* __restrict__ to, unsigned count) {
    __shared__ unsigned parts[32];
    unsigned sum = 0;
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) sum += hash_of(static_cast<unsigned>(i));
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned all = 0;
        for (unsigned w = 0; w < blockDim.x / 32; ++w) all += parts[w];
        atomicAdd(to, all);
    }
}

// A product chain in f32 whose exact result is known: powers of two and their sums stay exact. out[i] = i · 2⁻¹⁰ + rounds.
KERNEL void selftest_chain(float* __restrict__ out, unsigned count, int rounds) {
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) {
        float v = static_cast<float>(i) * 0.0009765625f;
        for (int k = 0; k < rounds; ++k) v = fmaf(v, 2.0f, 2.0f) * 0.5f;
        out[i] = v;
    }
}

// Memory: a pattern of the address, then its complement, each checked; `wrong` counts words.
KERNEL void selftest_fill(unsigned* __restrict__ memory, unsigned long long words, unsigned flip) {
    for (unsigned long long i = GLOBAL_INDEX; i < words; i += GLOBAL_COUNT) memory[i] = hash_of(static_cast<unsigned>(i)) ^ flip;
}
KERNEL void selftest_check(const unsigned* __restrict__ memory, unsigned long long words, unsigned flip, unsigned* __restrict__ wrong) {
    for (unsigned long long i = GLOBAL_INDEX; i < words; i += GLOBAL_COUNT)
        if (memory[i] != (hash_of(static_cast<unsigned>(i)) ^ flip)) atomicAdd(wrong, 1u);
}

// Ceilings: a copy (16 bytes read and written a step) and independent chains of fused multiply-adds (16 a round).
KERNEL void ceiling_copy(const float4* __restrict__ in, float4* __restrict__ out, unsigned long long count) {
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) out[i] = in[i];
}
KERNEL void ceiling_fma(float* __restrict__ out, int rounds) {
    float v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = static_cast<float>(threadIdx.x + k);
    for (int r = 0; r < rounds; ++r) {
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            v[k] = fmaf(v[k], 0.999f, 0.25f);
            v[k] = fmaf(v[k], 0.998f, 0.125f);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += v[k];
    out[GLOBAL_INDEX] = sum;
}
