// <metal_stdlib> for clang's C++ for OpenCL front end, which checks types and address spaces as Apple's compiler
// does: declarations only, nothing is run. tools/lint-shaders.sh puts this before the kernels' text.
//
// Stricter than Metal where the other compilers of the text need it: half and bfloat convert by name only and have
// no arithmetic, and only those names exist that all preludes have.

#pragma OPENCL EXTENSION __cl_clang_non_portable_kernel_param_types : enable

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")

// Scoped enumerations are the types that convert explicitly to and from float, and do nothing else.
#define half tl_half
#define double no_double_in_metal
enum class tl_half : ushort {};
enum class bfloat : ushort {};

// Vectors of numbers are the front end's own, with a function for the constructor.
#define TL_VECTORS(T)                                             \
    typedef T T##2 __attribute__((ext_vector_type(2)));           \
    typedef T T##3 __attribute__((ext_vector_type(3)));           \
    typedef T T##4 __attribute__((ext_vector_type(4)));           \
    T##2 make_##T##2(T, T);                                       \
    T##3 make_##T##3(T, T, T);                                    \
    T##4 make_##T##4(T, T, T, T);
TL_VECTORS(uchar)
TL_VECTORS(int)
TL_VECTORS(uint)
TL_VECTORS(ulong)
TL_VECTORS(float)
#define uchar4(...) make_uchar4(__VA_ARGS__)
#define int2(...) make_int2(__VA_ARGS__)
#define int4(...) make_int4(__VA_ARGS__)
#define uint2(...) make_uint2(__VA_ARGS__)
#define uint3(...) make_uint3(__VA_ARGS__)
#define uint4(...) make_uint4(__VA_ARGS__)
#define ulong2(...) make_ulong2(__VA_ARGS__)
#define float2(...) make_float2(__VA_ARGS__)
#define float4(...) make_float4(__VA_ARGS__)

// It has none of enumerations.
#define TL_COPIES(SPACE, NAME, T)      \
    NAME(SPACE const NAME&);           \
    void operator=(const __private NAME&) SPACE; \
    SPACE T& operator[](uint) SPACE;   \
    SPACE const T& operator[](uint) const SPACE;
#define TL_NARROW_VECTOR(NAME, T, BYTES, FIELDS, ...) \
    struct __attribute__((aligned(BYTES))) NAME {    \
        T FIELDS;                                    \
        NAME() = default;                            \
        NAME(__VA_ARGS__);                           \
        NAME(__constant const NAME&);                \
        TL_COPIES(__global, NAME, T)                 \
        TL_COPIES(__local, NAME, T)                  \
        TL_COPIES(__private, NAME, T)                \
    };
#define TL_COMMA ,
TL_NARROW_VECTOR(bfloat2, bfloat, 4, x TL_COMMA y, bfloat, bfloat)
TL_NARROW_VECTOR(bfloat4, bfloat, 8, x TL_COMMA y TL_COMMA z TL_COMMA w, bfloat, bfloat, bfloat, bfloat)
TL_NARROW_VECTOR(half2, half, 4, x TL_COMMA y, half, half)
TL_NARROW_VECTOR(half4, half, 8, x TL_COMMA y TL_COMMA z TL_COMMA w, half, half, half, half)

template <typename T, typename U> T as_type(U x) {
    static_assert(sizeof(T) == sizeof(U), "as_type: types of different sizes");
    return T();
}

float exp(float);
float exp2(float);
float log(float);
float log2(float);
float log10(float);
float sqrt(float);
float rsqrt(float);
float sin(float);
float cos(float);
float tan(float);
float tanh(float);
float pow(float, float);
float fmod(float, float);
float fabs(float);
float floor(float);
float ceil(float);
float rint(float);
float trunc(float);
float copysign(float, float);
float ldexp(float, int);
float fma(float, float, float);
bool isnan(float);
bool isinf(float);
bool isfinite(float);
#define TL_INTEGER_FUNCTIONS(T) \
    T min(T, T);                \
    T max(T, T);                \
    T clamp(T, T, T);
TL_INTEGER_FUNCTIONS(int)
TL_INTEGER_FUNCTIONS(uint)
TL_INTEGER_FUNCTIONS(long)
TL_INTEGER_FUNCTIONS(ulong)
uint abs(int);
uint mulhi(uint, uint);
uint popcount(uint);
uint ctz(uint);
uint clz(uint);

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define TL_SHUFFLES(T)               \
    T simd_shuffle(T, ushort);       \
    T simd_shuffle_xor(T, ushort);   \
    T simd_shuffle_down(T, ushort);  \
    T simd_broadcast(T, ushort);
TL_SHUFFLES(float)
TL_SHUFFLES(int)
TL_SHUFFLES(uint)
TL_SHUFFLES(half)
uint tl_ballot(bool);

#define atomic_uint tl_atomic_uint
struct atomic_uint {
    uint value;
};
enum memory_order { memory_order_relaxed };
uint atomic_exchange_explicit(volatile __global atomic_uint*, uint, memory_order);
uint atomic_fetch_add_explicit(volatile __global atomic_uint*, uint, memory_order);
uint atomic_load_explicit(const volatile __global atomic_uint*, memory_order);
void atomic_store_explicit(volatile __global atomic_uint*, uint, memory_order);

template <typename T, int COLUMNS, int ROWS> struct simdgroup_matrix {
    T elements[2];
    __private T* thread_elements() __private { return elements; }
};
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
template <typename T, int COLUMNS, int ROWS> simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T);
#define TL_MATRIX_MEMORY(SPACE)                                                                      \
    template <typename T>                                                                            \
    void simdgroup_load(__private simdgroup_matrix<T, 8, 8>&, const SPACE T*, ulong = 8,             \
                        ulong2 = ulong2(0, 0), bool = false);                                        \
    template <typename T>                                                                            \
    void simdgroup_store(const __private simdgroup_matrix<T, 8, 8>&, SPACE T*, ulong = 8,            \
                         ulong2 = ulong2(0, 0), bool = false);
TL_MATRIX_MEMORY(__global)
TL_MATRIX_MEMORY(__local)
template <typename T>
void simdgroup_multiply_accumulate(__private simdgroup_float8x8&, const __private simdgroup_matrix<T, 8, 8>&,
                                   const __private simdgroup_matrix<T, 8, 8>&, const __private simdgroup_float8x8&);

namespace metal {}

// CUDA alone has it.
#define TL_DISPATCH_BLOCK(NAME) threadgroup float NAME[8192]

#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define kernel __kernel
