// What every kernel file starts with.
//
// The same files are compiled by NVRTC for a GPU and by the host's compiler for the emulation (emulation/emulation.h).
// Kernels are written `KERNEL void name(…)`; device functions `DEVICE`; dynamic shared memory is named by
// DYNAMIC_SHARED(type, name). Headers of CUDA and of the C++ library are not available to NVRTC and not used.
#pragma once

#ifdef BEAMPILOT_EMULATION
#include "emulation.h"
#else

#define KERNEL extern "C" __global__
#define DEVICE static __device__ __forceinline__
#define DYNAMIC_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)

// Within 2^-23; the IEEE one costs eight instructions.
DEVICE float fast_sqrt(float v) {
    float r;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// IEEE half precision without cuda_fp16.h, rounding to nearest even.
DEVICE unsigned short half_from_float(float v) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
DEVICE float half_to_float(unsigned short h) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
    return v;
}
#endif

// Index of this thread in a one-dimensional grid, and how many there are.
#define GLOBAL_INDEX (static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x)
#define GLOBAL_COUNT (static_cast<unsigned long long>(gridDim.x) * blockDim.x)

// The float as an integer that orders the same way (−NaN first, +NaN last); `key_value` is its inverse.
DEVICE int key_of(float v) {
    int bits = __float_as_int(v);
    return bits ^ static_cast<int>(static_cast<unsigned>(bits >> 31) >> 1);
}
DEVICE float key_value(int key) {
    return __int_as_float(key ^ static_cast<int>(static_cast<unsigned>(key >> 31) >> 1));
}

DEVICE bool is_finite(float v) { return (__float_as_int(v) & 0x7f800000) != 0x7f800000; }
