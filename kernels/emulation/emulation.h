// CUDA's words for the host's compiler: what a kernel file sees when it is emulated. The engine that runs it is engine.h.
//
// Shared variables lie in a section of their own, which the engine fills with rubbish before each block.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "interface.h"

extern "C" __attribute__((visibility("hidden"))) bp::Engine* bp_engine;

#define KERNEL static
#define DEVICE static inline
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("bp_shared")))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(bp_engine->dynamic)
#define __syncthreads() bp_engine->barrier(__LINE__)
#define __syncwarp(...) bp_engine->collective(__LINE__, 0xffffffffu, 0, nullptr)

#define threadIdx (bp_engine->current->index)
#define blockIdx (bp_engine->block)
#define blockDim (bp_engine->block_dim)
#define gridDim (bp_engine->grid_dim)
#define warpSize 32

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static inline int __float_as_int(float v) { int i; std::memcpy(&i, &v, 4); return i; }
static inline float __int_as_float(int i) { float v; std::memcpy(&v, &i, 4); return v; }
static inline unsigned __float_as_uint(float v) { return static_cast<unsigned>(__float_as_int(v)); }
static inline float __uint_as_float(unsigned i) { return __int_as_float(static_cast<int>(i)); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline float fast_sqrt(float v) { return std::sqrt(v); }
// Never contracted with a neighbour; the emulation is compiled without contraction altogether.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
using std::fabs;
using std::floor;
using std::sqrt;

// Half precision, rounding to nearest even, subnormals, infinities and NaN included.
static inline unsigned short half_from_float(float v) {
    unsigned bits = __float_as_uint(v), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7fffu);
    if (rest >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);
    if (rest < 0x38800000u) {
        float magnitude = __uint_as_float(rest) + 0.5f;  // the sum rounds where a subnormal half ends
        return static_cast<unsigned short>(sign | (__float_as_uint(magnitude) - 0x3f000000u));
    }
    unsigned odd = rest >> 13 & 1u;
    return static_cast<unsigned short>(sign | ((rest - 0x38000000u + 0xfffu + odd) >> 13));
}
static inline float half_to_float(unsigned short h) {
    unsigned sign = (h & 0x8000u) << 16, e = h >> 10 & 31u, m = h & 0x3ffu;
    if (e == 31) return __uint_as_float(sign | 0x7f800000u | m << 13);
    if (e == 0) {
        float v = static_cast<float>(m) * 5.9604644775390625e-8f;
        return sign ? -v : v;
    }
    return __uint_as_float(sign | (e + 112u) << 23 | m << 13);
}

// Atomics: threads run one at a time, so that only the place where another may come in between matters.
template <class T, class V> static T atomicAdd(T* at, V by) { bp_engine->preempt(); T old = *at; *at = old + static_cast<T>(by); return old; }
template <class T, class V> static T atomicMax(T* at, V by) { bp_engine->preempt(); T old = *at; if (static_cast<T>(by) > old) *at = static_cast<T>(by); return old; }
template <class T, class V> static T atomicMin(T* at, V by) { bp_engine->preempt(); T old = *at; if (static_cast<T>(by) < old) *at = static_cast<T>(by); return old; }
template <class T, class V> static T atomicOr(T* at, V by) { bp_engine->preempt(); T old = *at; *at = old | static_cast<T>(by); return old; }

// Warp collectives: every lane of the mask has to come to the same line.
template <class T> static T bp_shuffle(int line, unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "shuffles move up to eight bytes");
    unsigned long long bits = 0, all[32];
    std::memcpy(&bits, &value, sizeof(T));
    bp_engine->collective(line, mask, bits, all);
    std::memcpy(&value, &all[from & 31], sizeof(T));
    return value;
}
#define BP_LANE (static_cast<int>(bp_engine->current->lane))
#define __shfl_sync(mask, value, from) bp_shuffle(__LINE__, mask, value, from)
#define __shfl_xor_sync(mask, value, by) bp_shuffle(__LINE__, mask, value, BP_LANE ^ (by))
#define __shfl_down_sync(mask, value, by) bp_shuffle(__LINE__, mask, value, BP_LANE + (by) < 32 ? BP_LANE + (by) : BP_LANE)
#define __shfl_up_sync(mask, value, by) bp_shuffle(__LINE__, mask, value, BP_LANE - (by) >= 0 ? BP_LANE - (by) : BP_LANE)
static inline unsigned bp_ballot(int line, unsigned mask, bool yes) {
    unsigned long long all[32];
    unsigned votes = 0;
    bp_engine->collective(line, mask, yes, all);
    for (unsigned l = 0; l < 32; ++l) votes |= (mask >> l & 1u) && all[l] ? 1u << l : 0u;
    return votes;
}
#define __ballot_sync(mask, yes) bp_ballot(__LINE__, mask, yes)
#define __any_sync(mask, yes) (bp_ballot(__LINE__, mask, yes) != 0)

// Arguments arrive packed; the kernel's own signature says how.
template <class... A> struct bp_unpack {
    template <void (*F)(A...), size_t... I> static void call(const unsigned char* packed, std::index_sequence<I...>) {
        size_t at[] = {0, sizeof(A)...};
        for (size_t i = 1; i <= sizeof...(A); ++i) at[i] += at[i - 1];
        auto get = [&](auto* value, size_t i) { std::memcpy(value, packed + at[i], sizeof(*value)); };
        std::tuple<std::remove_const_t<A>...> values;
        (get(&std::get<I>(values), I), ...);
        F(std::get<I>(values)...);
    }
};
template <auto F> struct bp_kernel;
template <class... A, void (*F)(A...)> struct bp_kernel<F> {
    static void call(const unsigned char* packed) { bp_unpack<A...>::template call<F>(packed, std::index_sequence_for<A...>{}); }
    static bp::Kernel entry(const char* name) {
        bp::Kernel k{};
        k.name = name;
        k.call = &call;
        k.arguments = sizeof...(A);
        size_t sizes[] = {sizeof(A)..., 0};
        for (unsigned i = 0; i < sizeof...(A) && i < bp::MAX_ARGUMENTS; ++i) k.sizes[i] = static_cast<unsigned>(sizes[i]);
        return k;
    }
};
