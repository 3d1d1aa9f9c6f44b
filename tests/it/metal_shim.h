// What shaders/functors.metal, shaders/random.metal and the op table use of <metal_stdlib>, in terms of the C++ library, and
// the columns of values that the program made by metal_text.rs reads and writes.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using uchar = std::uint8_t;
using uint = std::uint32_t;
using ulong = unsigned long;
static_assert(sizeof(int) == 4 && sizeof(long) == 8, "the sizes that MSL has");

using std::ceil, std::copysign, std::cos, std::exp, std::exp2, std::fabs, std::floor, std::fma, std::fmod;
using std::isfinite, std::isinf, std::isnan, std::ldexp, std::log, std::log10, std::log2, std::pow, std::rint;
using std::sin, std::sqrt, std::tan, std::trunc;

struct uint2 {
    uint x, y;
    uint2(uint x, uint y) : x(x), y(y) {}
};
struct uint4 {
    uint x, y, z, w;
    uint4(uint x, uint y, uint z, uint w) : x(x), y(y), z(z), w(w) {}
};
inline uint mulhi(uint a, uint b) { return uint(ulong(a) * b >> 32); }
template <class T, class U> T as_type(U x) {
    T bits;
    static_assert(sizeof bits == sizeof x);
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The next COUNT values of the input.
template <class T> struct Column : std::vector<T> {
    Column() : std::vector<T>(COUNT) {
        if (std::fread(this->data(), sizeof(T), COUNT, stdin) != COUNT) std::abort();
    }
};

// Writes COUNT values, each the result of one call.
template <class T, class F> void write(F result_at) {
    for (std::size_t i = 0; i < COUNT; i++) {
        T result = result_at(i);
        std::fwrite(&result, sizeof(T), 1, stdout);
    }
}
