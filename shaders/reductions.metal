// Folds in fixed trees: the order of additions follows from positions alone, so that a sum has the same
// bits in every run.

template <typename T> struct TlLimits;
template <> struct TlLimits<float> {
    static float low() { return -INFINITY; }
    static float high() { return INFINITY; }
};
template <> struct TlLimits<long> {
    static long low() { return -high() - 1; }
    static long high() { return long(~ulong(0) >> 1); }
};
template <> struct TlLimits<int> {
    static int low() { return -2147483647 - 1; }
    static int high() { return 2147483647; }
};
template <> struct TlLimits<uint> {
    static uint low() { return 0u; }
    static uint high() { return 4294967295u; }
};
template <> struct TlLimits<uchar> {
    static uchar low() { return 0; }
    static uchar high() { return 255; }
};

template <typename T> struct TlSum {
    static T empty() { return T(0); }
    static T both(T a, T b) { return tl_add(a, b); }
};
template <typename T> struct TlProd {
    static T empty() { return T(1); }
    static T both(T a, T b) { return tl_mul(a, b); }
};
template <typename T> struct TlMax {
    static T empty() { return TlLimits<T>::low(); }
    static T both(T a, T b) { return tl_max(a, b); }
};
template <typename T> struct TlMin {
    static T empty() { return TlLimits<T>::high(); }
    static T both(T a, T b) { return tl_min(a, b); }
};

// A value and where it stands.
template <typename T> struct TlBest {
    long index;
    T value;
};

typedef TlBest<float> TlBestFloat;
typedef TlBest<long> TlBestLong;
typedef TlBest<int> TlBestInt;
typedef TlBest<uint> TlBestUint;
typedef TlBest<uchar> TlBestUchar;

// Whether a comes before b: a NaN first, then what `ordered` says, then the smaller index.
template <typename T> inline bool tl_precedes(TlBest<T> a, TlBest<T> b, bool greater, bool less) {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan != b_nan) return a_nan;
    if (!a_nan && greater) return true;
    if (!a_nan && less) return false;
    return a.index < b.index;
}
template <typename T> inline TlBest<T> tl_best(T value, long index) {
    TlBest<T> best;
    best.value = value;
    best.index = index;
    return best;
}
template <typename T> struct TlArgMax {
    static TlBest<T> empty() { return tl_best(TlLimits<T>::low(), TlLimits<long>::high()); }
    static TlBest<T> at(T value, long index) { return tl_best(value, index); }
    static TlBest<T> both(TlBest<T> a, TlBest<T> b) {
        return tl_precedes(a, b, a.value > b.value, a.value < b.value) ? a : b;
    }
};
template <typename T> struct TlArgMin {
    static TlBest<T> empty() { return tl_best(TlLimits<T>::high(), TlLimits<long>::high()); }
    static TlBest<T> at(T value, long index) { return tl_best(value, index); }
    static TlBest<T> both(TlBest<T> a, TlBest<T> b) {
        return tl_precedes(a, b, a.value < b.value, a.value > b.value) ? a : b;
    }
};

inline float tl_shuffle_xor(float x, uint mask) { return simd_shuffle_xor(x, ushort(mask)); }
inline int tl_shuffle_xor(int x, uint mask) { return simd_shuffle_xor(x, ushort(mask)); }
inline uint tl_shuffle_xor(uint x, uint mask) { return simd_shuffle_xor(x, ushort(mask)); }
inline uchar tl_shuffle_xor(uchar x, uint mask) { return uchar(simd_shuffle_xor(uint(x), ushort(mask))); }
inline long tl_shuffle_xor(long x, uint mask) {
    const ulong bits = ulong(x);
    const uint low = simd_shuffle_xor(uint(bits), ushort(mask)), high = simd_shuffle_xor(uint(bits >> 32), ushort(mask));
    return long(ulong(high) << 32 | ulong(low));
}
template <typename T> inline TlBest<T> tl_shuffle_xor(TlBest<T> x, uint mask) {
    return tl_best(tl_shuffle_xor(x.value, mask), tl_shuffle_xor(x.index, mask));
}

// Folds x over each `width` neighbouring lanes (a power of two up to 32); all of them get the result.
template <typename Op, typename T> inline T tl_fold_lanes(T x, uint width) {
    for (uint mask = width / 2; mask > 0; mask /= 2) x = Op::both(x, tl_shuffle_xor(x, mask));
    return x;
}

// Folds x over a group of `simds` times 32 threads; all of them get the result. `team` holds 32 states.
template <typename Op, typename T>
inline T tl_fold_group(T x, threadgroup T* team, uint thread_index, uint simds) {
    x = tl_fold_lanes<Op>(x, 32);
    const uint lane = thread_index % 32;
    if (lane == 0) team[thread_index / 32] = x;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x = Op::empty();
    if (lane < simds) x = team[lane];
    threadgroup_barrier(mem_flags::mem_threadgroup); // the next fold writes it again
    return tl_fold_lanes<Op>(x, 32);
}

// Folds x over the `slices` threads that stand `lanes` apart; all of them get the result.
template <typename Op, typename T>
inline T tl_fold_slices(T x, threadgroup T* team, uint thread_index, uint lanes, uint slices) {
    team[thread_index] = x;
    for (uint width = slices / 2; width > 0; width /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (thread_index < width * lanes) {
            team[thread_index] = Op::both(team[thread_index], team[thread_index + width * lanes]);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x = team[thread_index % lanes];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return x;
}

// Folds packets x of N states, one for each of N neighbouring rows, over the `slices` threads that stand `lanes` apart;
// each of the first lanes * N threads gets the result of one row. `team` holds N * lanes * slices + 32 states.
template <typename Op, uint N, typename T>
inline T tl_fold_packets(thread const T* x, threadgroup T* team, uint thread_index, uint lanes, uint slices) {
    const uint plane = lanes * slices + 32 / N; // neighbouring rows of a packet stand in banks that differ
    for (uint u = 0; u < N; ++u) team[u * plane + thread_index] = x[u];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    T all = Op::empty();
    if (thread_index < lanes * N) {
        const uint first = thread_index % N * plane + thread_index / N;
        for (uint s = 0; s < slices; ++s) all = Op::both(all, team[first + s * lanes]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup); // the next fold writes it again
    return all;
}
