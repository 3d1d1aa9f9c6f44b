// <metal_stdlib> for host C++ (C++17; g++ and clang): what soft Metal puts before a kernel's translated text.
// Includes nothing, as every kernel of the test suite pays for what is in here. The functions that are only
// declared come from host_hooks.cpp, which is compiled once.

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
static_assert(sizeof(int) == 4 && sizeof(long) == 8, "the sizes that Metal has");

namespace metal {}

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

// Code whose loads and stores soft Metal does not check. Not inlined into code that is checked.
#define TL_PLAIN __attribute__((no_sanitize("thread"), noinline))

// ---- Types. half and bfloat are for storage: they convert by name only.

uint tl_half_to_float_bits(ushort);
ushort tl_half_from_float(float);
ushort tl_bfloat_from_float(float);

template <class T, class U> inline T as_type(U x) {
    static_assert(sizeof(T) == sizeof(U), "as_type: types of different sizes");
    return __builtin_bit_cast(T, x);
}

struct half {
    ushort bits;
    half() = default;
    explicit half(float x) : bits(tl_half_from_float(x)) {}
    explicit operator float() const { return as_type<float>(tl_half_to_float_bits(bits)); }
};
struct bfloat {
    ushort bits;
    bfloat() = default;
    explicit bfloat(float x) : bits(tl_bfloat_from_float(x)) {}
    explicit operator float() const { return as_type<float>(uint(bits) << 16); }
};

#define TL_VECTOR2(T)                                            \
    struct alignas(2 * sizeof(T)) T##2 {                         \
        T x, y;                                                  \
        T##2() = default;                                        \
        T##2(T x, T y) : x(x), y(y) {}                           \
        explicit T##2(T s) : x(s), y(s) {}                       \
        T& operator[](uint i) { return (&x)[i]; }                \
        const T& operator[](uint i) const { return (&x)[i]; }    \
    };
#define TL_VECTOR4(T)                                            \
    struct alignas(4 * sizeof(T)) T##4 {                         \
        T x, y, z, w;                                            \
        T##4() = default;                                        \
        T##4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}     \
        explicit T##4(T s) : x(s), y(s), z(s), w(s) {}           \
        T& operator[](uint i) { return (&x)[i]; }                \
        const T& operator[](uint i) const { return (&x)[i]; }    \
    };
TL_VECTOR2(int) TL_VECTOR4(int)
TL_VECTOR2(uint) TL_VECTOR4(uint)
TL_VECTOR2(float) TL_VECTOR4(float)
TL_VECTOR2(half) TL_VECTOR4(half)
TL_VECTOR2(bfloat) TL_VECTOR4(bfloat)
TL_VECTOR2(ulong) TL_VECTOR4(uchar)
struct alignas(16) uint3 {
    uint x, y, z;
    uint3() = default;
    uint3(uint x, uint y, uint z) : x(x), y(y), z(z) {}
};

// ---- Math.

#define TL_MATH(NAME, BUILTIN) inline float NAME(float x) { return __builtin_##BUILTIN(x); }
TL_MATH(exp, expf) TL_MATH(exp2, exp2f) TL_MATH(log, logf) TL_MATH(log2, log2f) TL_MATH(log10, log10f)
TL_MATH(sqrt, sqrtf) TL_MATH(sin, sinf) TL_MATH(cos, cosf) TL_MATH(tan, tanf) TL_MATH(tanh, tanhf)
TL_MATH(fabs, fabsf) TL_MATH(floor, floorf) TL_MATH(ceil, ceilf) TL_MATH(rint, rintf) TL_MATH(trunc, truncf)
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float pow(float x, float y) { return __builtin_powf(x, y); }
inline float fmod(float x, float y) { return __builtin_fmodf(x, y); }
inline float copysign(float x, float y) { return __builtin_copysignf(x, y); }
inline float ldexp(float x, int n) { return __builtin_ldexpf(x, n); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }

#define TL_INTEGER_FUNCTIONS(T)                                                     \
    inline T min(T a, T b) { return b < a ? b : a; }                                \
    inline T max(T a, T b) { return a < b ? b : a; }                                \
    inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
TL_INTEGER_FUNCTIONS(int) TL_INTEGER_FUNCTIONS(uint) TL_INTEGER_FUNCTIONS(long) TL_INTEGER_FUNCTIONS(ulong)
inline uint abs(int x) { return x < 0 ? 0u - uint(x) : uint(x); }
inline uint mulhi(uint a, uint b) { return uint(ulong(a) * b >> 32); }
inline uint popcount(uint x) { return uint(__builtin_popcount(x)); }
inline uint ctz(uint x) { return x == 0 ? 32 : uint(__builtin_ctz(x)); }
inline uint clz(uint x) { return x == 0 ? 32 : uint(__builtin_clz(x)); }

// ---- The runtime.

// What a thread knows of itself; src/device/soft_metal/run.rs has the same.
struct TlContext {
    void* const* buffers;
    const void* args;
    uint3 threadgroup_position_in_grid, threadgroups_per_grid;
    uint thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
};

// What the runtime does for kernels; src/device/soft_metal/hooks.rs has the same. Lines are the callers', by which
// the runtime tells one barrier or exchange from another.
struct TlRuntime {
    void (*access)(const void* address, uint bytes, uint flags, const void* caller);
    uint (*atomic)(volatile void* address, uint operation, uint operand, const void* caller);
    void (*barrier)(uint scope, uint flags, int line);
    const void* (*exchange)(const void* value, uint bytes, int line);
    void* (*threadgroup)(uint index, uint bytes);
    uint (*lane)();
};
extern const TlRuntime* tl_runtime;

// Functions that only kernels whose threads wait for one another, or share memory, use. The library of a kernel
// exports those that it uses, and the runtime looks for them: threads of other kernels can run one after another.
#define TL_COOPERATIVE extern "C" TL_PLAIN __attribute__((visibility("default"))) inline

// For shuffles and simdgroup_matrix: each of the 32 lanes of a simdgroup gives `bytes` (at most 16) bytes at `value`,
// and gets what all lanes gave, lane l's at l * 16 bytes into the result, which keeps until its next exchange.
TL_COOPERATIVE const void* tl_exchange(const void* value, uint bytes, int line) {
    return tl_runtime->exchange(value, bytes, line);
}
TL_COOPERATIVE void tl_barrier(uint scope, uint flags, int line) { tl_runtime->barrier(scope, flags, line); }
TL_COOPERATIVE void* tl_threadgroup(uint index, uint bytes) { return tl_runtime->threadgroup(index, bytes); }

#define TL_KERNEL static __attribute__((noinline))
#define TL_ENTRY(NAME) extern "C" TL_PLAIN __attribute__((visibility("default"))) void tl_entry_##NAME(const TlContext* tl)
// The INDEXth declaration of threadgroup memory in a kernel: `threadgroup T NAME DIMS;`.
#define TL_THREADGROUP(INDEX, T, NAME, DIMS) \
    typedef T tl_type_##NAME DIMS;           \
    tl_type_##NAME& NAME = *(tl_type_##NAME*)tl_threadgroup(INDEX, sizeof(tl_type_##NAME))

#define TL_LINE int line = __builtin_LINE()
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }
inline void threadgroup_barrier(mem_flags flags, TL_LINE) { tl_barrier(0, uint(flags), line); }
inline void simdgroup_barrier(mem_flags flags, TL_LINE) { tl_barrier(1, uint(flags), line); }

// The value of `x` at a lane; NaN or the like where there is no such lane, as Metal leaves open what it is.
template <class T> TL_PLAIN T tl_from_lane(T x, uint lane, int line) {
    const void* all = tl_exchange(&x, sizeof(T), line);
    __builtin_memset(&x, 0xff, sizeof(T));
    if (lane < 32) __builtin_memcpy(&x, (const char*)all + 16 * lane, sizeof(T));
    return x;
}
TL_PLAIN inline uint tl_lane() { return tl_runtime->lane(); }
template <class T> inline T simd_shuffle(T x, uint lane, TL_LINE) { return tl_from_lane(x, lane, line); }
template <class T> inline T simd_broadcast(T x, uint lane, TL_LINE) { return tl_from_lane(x, lane, line); }
template <class T> inline T simd_shuffle_xor(T x, uint mask, TL_LINE) { return tl_from_lane(x, tl_lane() ^ mask, line); }
template <class T> inline T simd_shuffle_down(T x, uint n, TL_LINE) { return tl_from_lane(x, tl_lane() + n, line); }
TL_PLAIN inline uint tl_ballot(bool x, TL_LINE) {
    const char* all = (const char*)tl_exchange(&x, 1, line);
    uint votes = 0;
    for (uint lane = 0; lane < 32; lane++) votes |= uint(all[16 * lane]) << lane;
    return votes;
}

enum memory_order { memory_order_relaxed };
struct atomic_uint {
    uint value;
};
#define TL_ATOMIC(P, OPERATION, OPERAND) tl_runtime->atomic((volatile void*)P, OPERATION, OPERAND, __builtin_return_address(0))
TL_PLAIN inline uint atomic_load_explicit(const volatile atomic_uint* p, memory_order) { return TL_ATOMIC(p, 0, 0); }
TL_PLAIN inline void atomic_store_explicit(volatile atomic_uint* p, uint x, memory_order) { TL_ATOMIC(p, 1, x); }
TL_PLAIN inline uint atomic_exchange_explicit(volatile atomic_uint* p, uint x, memory_order) { return TL_ATOMIC(p, 1, x); }
TL_PLAIN inline uint atomic_fetch_add_explicit(volatile atomic_uint* p, uint x, memory_order) { return TL_ATOMIC(p, 2, x); }
