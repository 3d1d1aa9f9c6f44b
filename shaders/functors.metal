// The functions that the `msl` column of the op table (src/ops/table.rs) names. Every generated kernel
// starts with this text, after <metal_stdlib> and `using namespace metal`; nothing here is a kernel or
// touches memory, so that tests/it/metal_text.rs can compile it as C++ and hold it to the CPU's results.
//
// Kernels are compiled without fast-math: its exp and tanh are wrong where large, and it assumes NaN away.
// Products and sums that belong together are fma by name, so that no compiler has a choice.
//
// MSL has no expm1, log1p and erf. Theirs are the polynomials of src/ops/math.rs, minimax fits of this
// project, with the interval and error stated there.

// Integers: MSL leaves signed overflow and division by zero undefined; these wrap, and give 0. U is an
// unsigned type, in which arithmetic wraps by definition, at least as wide as T.
#define TL_INTEGER(T, U)                                                                          \
    inline T tl_add(T a, T b) { return T(U(a) + U(b)); }                                          \
    inline T tl_sub(T a, T b) { return T(U(a) - U(b)); }                                          \
    inline T tl_mul(T a, T b) { return T(U(a) * U(b)); }                                          \
    inline T tl_neg(T x) { return T(U(0) - U(x)); }                                               \
    inline T tl_abs(T x) { return x < T(0) ? tl_neg(x) : x; }                                     \
    inline T tl_sign(T x) { return T(int(x > T(0)) - int(x < T(0))); }                            \
    inline T tl_relu(T x) { return x < T(0) ? T(0) : x; }                                         \
    inline T tl_max(T a, T b) { return a > b ? a : b; }                                           \
    inline T tl_min(T a, T b) { return a < b ? a : b; }                                           \
    /* Unsigned T(-1) is no minus one, but the largest value. */                                  \
    inline bool tl_is_minus_one(T x) { return T(-1) < T(0) && x == T(-1); }                       \
    inline T tl_div(T a, T b) {                                                                   \
        if (tl_is_minus_one(b)) return tl_neg(a);                                                 \
        return b == T(0) ? T(0) : T(a / b);                                                       \
    }                                                                                             \
    inline T tl_rem(T a, T b) { return b == T(0) || tl_is_minus_one(b) ? T(0) : T(a % b); }       \
    /* By squaring; a negative exponent gives the quotient 1 / a^-b, rounded towards zero. */     \
    inline T tl_pow(T a, T b) {                                                                   \
        if (b < T(0)) return a == T(1) || (tl_is_minus_one(a) && (b & T(1)) == T(0)) ? T(1)       \
                           : tl_is_minus_one(a) ? a : T(0);                                       \
        U power = 1, base = U(a);                                                                 \
        for (U exponent = U(b); exponent != 0; exponent >>= 1) {                                  \
            if (exponent & 1) power *= base;                                                      \
            base *= base;                                                                         \
        }                                                                                         \
        return T(power);                                                                          \
    }
TL_INTEGER(int, uint)
TL_INTEGER(uint, uint)
TL_INTEGER(long, ulong)
TL_INTEGER(uchar, uint)
#undef TL_INTEGER

inline float tl_add(float a, float b) { return a + b; }
inline float tl_sub(float a, float b) { return a - b; }
inline float tl_mul(float a, float b) { return a * b; }
inline float tl_neg(float x) { return -x; }
inline float tl_div(float a, float b) { return a / b; }
inline float tl_rem(float a, float b) { return fmod(a, b); }
inline float tl_pow(float a, float b) { return pow(a, b); }
inline float tl_abs(float x) { return fabs(x); }

// MSL's sign gives 0 for NaN, and its max and min drop a NaN; these keep it.
inline float tl_sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
inline float tl_relu(float x) { return x < 0.0f ? 0.0f : x; }
inline float tl_max(float a, float b) { return a > b || isnan(a) ? a : b; }
inline float tl_min(float a, float b) { return a < b || isnan(a) ? a : b; }

// e^x = 2^n e^r with |r| <= ln(2) / 2, so e^x - 1 = 2^n ((e^r - 1) + (1 - 2^-n)), whose parts are exact but
// for e^r - 1. ln 2 is taken off in two parts, the first of nine bits (Cody and Waite 1980, chapter 6).
inline float tl_expm1(float x) {
    if (fabs(x) < 1e-30f) return x; // keeps -0
    float bounded = x < -20.0f ? -20.0f : x > 89.0f ? 89.0f : x;
    float n = rint(bounded * 1.44269504f);
    float r = fma(n, 2.12194440e-4f, fma(n, -0.693359375f, bounded));
    float p = fma(fma(fma(fma(1.38377992e-3f, r, 8.36708490e-3f), r, 0.0416677482f), r, 0.166665390f), r, 0.499999970f);
    float part = fma(r * r, p, r);
    // NaN has no integer part.
    return isnan(x) ? x : ldexp(part + (1.0f - ldexp(1.0f, -int(n))), int(n));
}

// Near 0 a polynomial; elsewhere 1 + x loses less than the logarithm shows.
inline float tl_log1p(float x) {
    if (!(x > -0.29f && x < 0.41f)) return log(1.0f + x);
    float p = fma(fma(fma(-0.0763631836f, x, 0.127636582f), x, -0.131605014f), x, 0.142015040f);
    p = fma(fma(fma(fma(p, x, -0.166233018f), x, 0.200012356f), x, -0.250008225f), x, 0.333333313f);
    return fma(x * x, fma(p, x, -0.5f), x);
}

// tanh |x| = -t / (2 + t) with t = e^(-2 |x|) - 1, which cannot overflow and does not cancel near 0.
inline float tl_tanh(float x) {
    float t = tl_expm1(-2.0f * fabs(x));
    return copysign(t / (2.0f + t), x);
}

// What is rounded to half or bfloat needs less: these are within half a unit of half's (those of ops/math.rs for it).
// CUDA has instructions for the first three.
#ifndef TL_CUDA
inline float tl_fast_exp2(float x) { return exp2(x); }
inline float tl_fast_divide(float a, float b) { return a / b; }
// x between -limit and limit.
inline float tl_bound(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }
#endif

inline float tl_tanh_narrow(float x) {
    float a = tl_bound(x, 4.6f), z = a * a;
    float p = fma(fma(7.09583925e-4f, z, 0.103624754f), z, 0.999967933f);
    float q = fma(fma(0.0131970607f, z, 0.436747223f), z, 1.0f);
    return tl_fast_divide(a * p, q);
}

inline float tl_sigmoid_narrow(float x) { return tl_fast_divide(1.0f, 1.0f + tl_fast_exp2(x * -1.44269504f)); }

// Up to 1 an odd polynomial; above, 1 - 2^p, of which nothing is left from 3.95 on.
inline float tl_erf(float x) {
    float a = fabs(x), z = x * x;
    if (a < 1.0f) {
        float p = fma(fma(fma(7.85386073e-5f, z, -8.01019371e-4f), z, 5.18832775e-3f), z, -0.0268538110f);
        return fma(x, fma(fma(fma(p, z, 0.112835854f), z, -0.376126260f), z, 0.128379166f), x);
    }
    float b = a > 3.95f ? 3.95f : a;
    float p = fma(fma(fma(2.67726631e-4f, b, -4.24095616e-3f), b, 0.0314584225f), b, -0.148651496f);
    p = fma(fma(fma(p, b, -0.920765042f), b, -1.62597501f), b, -5.10309066e-4f);
    return copysign(1.0f - exp2(p), x);
}

// With e = e^-|x| nothing overflows, and negative x keep relative accuracy.
inline float tl_sigmoid(float x) {
    float e = exp(-fabs(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

inline float tl_softplus(float x) { return tl_max(x, 0.0f) + tl_log1p(exp(-fabs(x))); }
