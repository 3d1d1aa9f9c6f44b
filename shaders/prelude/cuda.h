// The names of <metal_stdlib> that kernels use, for NVRTC with -default-device and -fmad=false. Goes before a source
// that src/device/gpu/translate.rs has translated. Needs no CUDA header: of NVRTC itself come the math functions (their
// float overloads are the precise ones), the shuffles and the atomics. For compute capability 8.0 and up.

namespace metal {}

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
#ifdef _WIN32 // where long has 32 bits
typedef long long tl_long;
#define long tl_long
typedef unsigned long long ulong;
#else
typedef unsigned long ulong;
#endif

#undef INFINITY
#undef NAN
#define INFINITY __builtin_bit_cast(float, 0x7f800000u)
#define NAN __builtin_bit_cast(float, 0x7fc00000u)

// ---- narrow floats: conversion to and from float, to nearest even; NaN and subnormals are kept

struct half {
    ushort bits;
    half() = default;
    explicit half(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
};

struct bfloat {
    ushort bits;
    bfloat() = default;
    explicit bfloat(float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    operator float() const { return __uint_as_float(uint(bits) << 16); }
};

// ---- what shaders/functors.metal leaves to CUDA

inline float tl_fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
inline float tl_fast_divide(float a, float b) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(b));
    return a * y;
}
inline float tl_bound(float x, float limit) {
#if __CUDA_ARCH__ >= 860
    float y;
    asm("min.NaN.xorsign.abs.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(limit));
    return y;
#else
    return x > limit ? limit : x < -limit ? -limit : x;
#endif
}

// ---- vectors: CUDA's own have no constructors, so the names stand for these

#define TL_ELEMENTS(T)                                   \
    T& operator[](uint i) { return (&x)[i]; }            \
    const T& operator[](uint i) const { return (&x)[i]; }
#define TL_VECTOR2(T, NAME)                              \
    struct __align__(2 * sizeof(T)) NAME {               \
        T x, y;                                          \
        NAME() = default;                                \
        explicit NAME(T a) : x(a), y(a) {}               \
        NAME(T a, T b) : x(a), y(b) {}                   \
        TL_ELEMENTS(T)                                   \
    };
#define TL_VECTOR3(T, NAME)                              \
    struct __align__(4 * sizeof(T)) NAME {               \
        T x, y, z;                                       \
        NAME() = default;                                \
        explicit NAME(T a) : x(a), y(a), z(a) {}         \
        NAME(T a, T b, T c) : x(a), y(b), z(c) {}        \
        TL_ELEMENTS(T)                                   \
    };
#define TL_VECTOR4(T, NAME)                                     \
    struct __align__(4 * sizeof(T)) NAME {                      \
        T x, y, z, w;                                           \
        NAME() = default;                                       \
        explicit NAME(T a) : x(a), y(a), z(a), w(a) {}          \
        NAME(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}    \
        TL_ELEMENTS(T)                                          \
    };
TL_VECTOR2(int, tl_int2)
TL_VECTOR4(int, tl_int4)
TL_VECTOR2(uint, tl_uint2)
TL_VECTOR3(uint, tl_uint3)
TL_VECTOR4(uint, tl_uint4)
TL_VECTOR2(ulong, tl_ulong2)
TL_VECTOR4(uchar, tl_uchar4)
TL_VECTOR2(float, tl_float2)
TL_VECTOR4(float, tl_float4)
TL_VECTOR2(half, half2)
TL_VECTOR4(half, half4)
TL_VECTOR2(bfloat, bfloat2)
TL_VECTOR4(bfloat, bfloat4)
#undef TL_ELEMENTS
#undef TL_VECTOR2
#undef TL_VECTOR3
#undef TL_VECTOR4
#define int2 tl_int2
#define int4 tl_int4
#define uint2 tl_uint2
#define uint3 tl_uint3
#define uint4 tl_uint4
#define ulong2 tl_ulong2
#define uchar4 tl_uchar4
#define float2 tl_float2
#define float4 tl_float4

template <class T, class S> inline T as_type(S x) {
    static_assert(sizeof(T) == sizeof(S), "as_type: sizes differ");
    T bits;
    memcpy(&bits, &x, sizeof(T));
    return bits;
}

// ---- integers

template <class T> inline T clamp(T x, T low, T high) { return x < low ? low : x > high ? high : x; }
inline uint mulhi(uint a, uint b) { return __umulhi(a, b); }
inline uint popcount(uint x) { return __popc(x); }
inline uint clz(uint x) { return __clz(x); }
inline uint ctz(uint x) { return __clz(__brev(x)); }

// ---- where a thread is: threads are counted along one dimension

inline uint3 tl_threadgroup_position_in_grid() { return uint3(blockIdx.x, blockIdx.y, blockIdx.z); }
inline uint3 tl_threadgroups_per_grid() { return uint3(gridDim.x, gridDim.y, gridDim.z); }
inline uint tl_thread_index_in_threadgroup() { return threadIdx.x; }
inline uint tl_thread_index_in_simdgroup() { return threadIdx.x & 31; }
inline uint tl_simdgroup_index_in_threadgroup() { return threadIdx.x >> 5; }

// ---- barriers

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

// Both order accesses to device and to threadgroup memory, whatever is asked for.
inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
inline void simdgroup_barrier(mem_flags) { __syncwarp(); }

// ---- the lanes of a simdgroup, all of which take part

#define TL_SHUFFLES(T, TO, FROM)                                                                              \
    inline T simd_shuffle(T x, uint lane) { return FROM(__shfl_sync(0xffffffffu, TO(x), lane)); }             \
    inline T simd_shuffle_xor(T x, uint mask) { return FROM(__shfl_xor_sync(0xffffffffu, TO(x), mask)); }     \
    inline T simd_shuffle_down(T x, uint delta) { return FROM(__shfl_down_sync(0xffffffffu, TO(x), delta)); } \
    inline T simd_broadcast(T x, uint lane) { return FROM(__shfl_sync(0xffffffffu, TO(x), lane)); }
inline uint tl_half_bits(half x) { return x.bits; }
inline half tl_half(uint bits) { return as_type<half>(ushort(bits)); }
TL_SHUFFLES(float, float, float)
TL_SHUFFLES(int, int, int)
TL_SHUFFLES(uint, uint, uint)
TL_SHUFFLES(half, tl_half_bits, tl_half)
#undef TL_SHUFFLES

inline uint tl_ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }

// ---- atomics, relaxed

struct atomic_uint {
    uint value;
};
enum memory_order { memory_order_relaxed };
inline uint atomic_exchange_explicit(atomic_uint* object, uint x, memory_order) { return atomicExch(&object->value, x); }
inline uint atomic_fetch_add_explicit(atomic_uint* object, uint x, memory_order) { return atomicAdd(&object->value, x); }
inline uint atomic_load_explicit(const atomic_uint* object, memory_order) { return *(const volatile uint*)&object->value; }
inline void atomic_store_explicit(atomic_uint* object, uint x, memory_order) { *(volatile uint*)&object->value = x; }
