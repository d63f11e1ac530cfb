// Storage in half precision, rounded to nearest even; infinities and NaN stay what they are. Grid-stride, any launch.
#include "common.h"

KERNEL void floats_to_halves(const float* __restrict__ in, unsigned short* __restrict__ out, unsigned long long count) {
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) out[i] = half_from_float(in[i]);
}

KERNEL void halves_to_floats(const unsigned short* __restrict__ in, float* __restrict__ out, unsigned long long count) {
    for (unsigned long long i = GLOBAL_INDEX; i < count; i += GLOBAL_COUNT) out[i] = half_to_float(in[i]);
}
