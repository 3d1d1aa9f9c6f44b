// Memory to registers and back: packets of elements that lie side by side. Narrow floats are held in f32
// and rounded once, at the store. C is the type that registers hold, T what memory holds.

// The widest word that a packet of BYTES bytes is made of.
template <uint BYTES> struct TlWord { typedef uint4 type; };
template <> struct TlWord<8> { typedef uint2 type; };
template <> struct TlWord<4> { typedef uint type; };
template <> struct TlWord<2> { typedef ushort type; };
template <> struct TlWord<1> { typedef uchar type; };

// The first `count` of N elements at p, which is aligned to all N of them; zeros for the rest.
template <uint N, typename T, typename C>
inline void tl_load(device const T* p, uint count, thread C* v) {
    typedef typename TlWord<N * sizeof(T)>::type W;
    if (count < N) {
        for (uint i = 0; i < N; ++i) v[i] = i < count ? C(p[i]) : C(0);
        return;
    }
    const uint COUNT = N * sizeof(T) / sizeof(W);
    W words[COUNT];
    for (uint i = 0; i < COUNT; ++i) words[i] = ((device const W*)p)[i];
    thread const T* x = (thread const T*)words;
    for (uint i = 0; i < N; ++i) v[i] = C(x[i]);
}

// The same for elements that lie `step` apart, or are not aligned.
template <uint N, typename T, typename C, typename I>
inline void tl_load_strided(device const T* p, I step, uint count, thread C* v) {
    for (uint i = 0; i < N; ++i) v[i] = i < count ? C(p[I(i) * step]) : C(0);
}

// Stores the first `count` of N elements at p, which is aligned to all N of them.
template <uint N, typename T, typename C>
inline void tl_store(device T* p, uint count, thread const C* v) {
    typedef typename TlWord<N * sizeof(T)>::type W;
    if (count < N) {
        for (uint i = 0; i < N; ++i) {
            if (i < count) p[i] = T(v[i]);
        }
        return;
    }
    const uint COUNT = N * sizeof(T) / sizeof(W);
    W words[COUNT];
    thread T* x = (thread T*)words;
    for (uint i = 0; i < N; ++i) x[i] = T(v[i]);
    for (uint i = 0; i < COUNT; ++i) ((device W*)p)[i] = words[i];
}

template <uint N, typename T, typename C, typename I>
inline void tl_store_strided(device T* p, I step, uint count, thread const C* v) {
    for (uint i = 0; i < N; ++i) {
        if (i < count) p[I(i) * step] = T(v[i]);
    }
}

// Floats to integers: towards zero, the nearest limit where out of range, 0 for NaN. (MSL leaves the last
// two undefined.)
inline int tl_to_int(float x) {
    if (isnan(x)) return 0;
    return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? (-2147483647 - 1) : int(x);
}
inline uint tl_to_uint(float x) { return !(x > 0.0f) ? 0u : x >= 4294967296.0f ? 4294967295u : uint(x); }
inline uchar tl_to_uchar(float x) { return !(x > 0.0f) ? uchar(0) : x >= 255.0f ? uchar(255) : uchar(uint(x)); }
inline long tl_to_long(float x) {
    const long top = long(~ulong(0) >> 1);
    if (isnan(x)) return 0;
    return x >= 9223372036854775808.0f ? top : x < -9223372036854775808.0f ? -top - 1 : long(x);
}

// An integer as f32, rounded to odd, which keeps the rounding to f16 or bf16 that follows from being a
// second one (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
inline float tl_odd(long x) {
    const ulong size = x < 0 ? ulong(0) - ulong(x) : ulong(x);
    const uint high = uint(size >> 32), top = high != 0 ? 63 - clz(high) : 31 - clz(uint(size) | 1);
    if (top < 24) return float(int(x));
    // 24 bits and whether any below them are set; such an integer is a float exactly.
    const uint shift = top - 23;
    const uint kept = uint(size >> shift), lost = uint((size & ((ulong(1) << shift) - 1)) != 0);
    const float magnitude = ldexp(float(kept | lost), int(shift));
    return x < 0 ? -magnitude : magnitude;
}
