// Kernels that break a rule, each beside one that keeps it: the emulation must tell them apart.
#include "../common.h"

// Each thread takes its mirror's value. The good one waits for it.
KERNEL void mirror_good(const int* in, int* out) {
    __shared__ int line[128];
    line[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = line[127 - threadIdx.x];
}
KERNEL void mirror_without_barrier(const int* in, int* out) {
    __shared__ int line[128];
    line[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = line[127 - threadIdx.x];
}

// A tree sum; the bad one relies on a warp running in step.
KERNEL void sum_good(const int* in, int* out) {
    __shared__ int part[128];
    part[threadIdx.x] = in[threadIdx.x];
    for (unsigned by = 64; by > 0; by /= 2) {
        __syncthreads();
        if (threadIdx.x < by) part[threadIdx.x] += part[threadIdx.x + by];
    }
    if (threadIdx.x == 0) *out = part[0];
}
KERNEL void sum_in_step(const int* in, int* out) {
    __shared__ int part[128];
    part[threadIdx.x] = in[threadIdx.x];
    for (unsigned by = 64; by > 0; by /= 2) {
        if (by >= 32) __syncthreads();
        if (threadIdx.x < by) part[threadIdx.x] += part[threadIdx.x + by];
    }
    if (threadIdx.x == 0) *out = part[0];
}

// A loop whose second barrier is missing: the next round's write overtakes this round's read.
KERNEL void rounds_without_second_barrier(const int* in, int* out) {
    __shared__ int line[128];
    int v = in[threadIdx.x];
    for (int round = 0; round < 4; ++round) {
        line[threadIdx.x] = v;
        __syncthreads();
        v += line[(threadIdx.x + 1) % 128];
    }
    out[threadIdx.x] = v;
}
KERNEL void rounds_good(const int* in, int* out) {
    __shared__ int line[128];
    int v = in[threadIdx.x];
    for (int round = 0; round < 4; ++round) {
        line[threadIdx.x] = v;
        __syncthreads();
        v += line[(threadIdx.x + 1) % 128];
        __syncthreads();
    }
    out[threadIdx.x] = v;
}

// Barriers that not all threads reach.
KERNEL void barrier_in_a_branch(const int* in, int* out) {
    if (threadIdx.x < 64) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = in[threadIdx.x];
}
KERNEL void barrier_after_return(const int* in, int* out) {
    if (threadIdx.x >= 100) return;
    __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}

// Counts through memory; the good one by atomics.
KERNEL void count_without_atomics(const int* in, int* out) {
    int before = *out;
    atomicAdd(out + 1, 1);  // where another thread may come in between
    *out = before + in[threadIdx.x] - in[threadIdx.x] + 1;
}
KERNEL void count_good(const int* in, int* out) { atomicAdd(out, in[threadIdx.x] - in[threadIdx.x] + 1); }

// Warp collectives: all lanes of the mask, or an error.
KERNEL void shuffle_good(const int* in, int* out) {
    int v = in[threadIdx.x];
    for (int by = 16; by > 0; by /= 2) v += __shfl_down_sync(0xffffffffu, v, by);
    const unsigned odd = __ballot_sync(0xffffffffu, in[threadIdx.x] & 1);
    if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = v + __popc(odd);
}
KERNEL void shuffle_in_a_branch(const int* in, int* out) {
    int v = in[threadIdx.x];
    if (threadIdx.x % 32 < 16) v += __shfl_down_sync(0xffffffffu, v, 8);
    out[threadIdx.x] = v;
}

// Relies on shared memory that nobody wrote.
KERNEL void shared_starts_as_zero(const int* in, int* out) {
    __shared__ int sum;
    atomicAdd(&sum, in[threadIdx.x]);
    __syncthreads();
    if (threadIdx.x == 0) *out = sum;
}
