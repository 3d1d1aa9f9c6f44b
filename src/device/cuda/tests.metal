// Every name that kernels use, as they use them: for the compiler's tests. The kernels `twice` and `group_sums`
// also run, where there is a GPU.

struct Args { long n; int rows; float scale; };
struct Pointers { device half* a; device half* b; int n; };
constant constexpr uint LANES = 32;
constant constexpr float LOWEST = -INFINITY;

[[max_total_threads_per_threadgroup(256)]]
kernel void twice(device const half* b0 [[buffer(0)]],
                  device half* b1 [[buffer(1)]],
                  constant Args& args [[buffer(2)]],
                  uint3 group [[threadgroup_position_in_grid]],
                  uint index [[thread_index_in_threadgroup]]) {
    long at = (long(group.x) * 256 + index) * 8;
    if (at + 8 <= args.n) {
        uint4 in = *(device const uint4*)(b0 + at);
        uint4 out;
        for (uint i = 0; i < 4; ++i) {
            half2 pair = as_type<half2>(in[i]);
            out[i] = as_type<uint>(half2(half(float(pair.x) * args.scale), half(float(pair.y) * args.scale)));
        }
        *(device uint4*)(b1 + at) = out;
    } else {
        for (; at < args.n; ++at) b1[at] = half(float(b0[at]) * args.scale);
    }
}

kernel void twice_by_pointers(constant Pointers& args [[buffer(0)]],
                              uint group [[threadgroup_position_in_grid]],
                              uint groups [[threadgroups_per_grid]],
                              uint index [[thread_index_in_threadgroup]]) {
    for (int at = int(group * 256 + index); at < args.n; at += int(groups * 256)) {
        args.b[at] = half(2.0f * float(args.a[at]));
    }
}

template <class T> inline float tree(float x, threadgroup T* partial, uint lane, uint simdgroup) {
    for (uint mask = LANES / 2; mask > 0; mask >>= 1) x += simd_shuffle_xor(x, mask);
    if (lane == 0) partial[simdgroup] = T(x);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum = 0.0f;
    for (uint i = 0; i < 8; ++i) sum += float(partial[i]);
    return sum;
}

kernel void group_sums(device const float* b0 [[buffer(0)]],
                       device float* b1 [[buffer(1)]],
                       device atomic_uint* fault [[buffer(2)]],
                       uint2 group [[threadgroup_position_in_grid]],
                       uint index [[thread_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup float partial[LANES];
    float sum = tree(b0[group.x * 256 + index], partial, lane, simdgroup);
    if (index == 0) {
        b1[group.x] = sum;
        if (atomic_exchange_explicit(&fault[0], 7u, memory_order_relaxed) == 0) {
            atomic_store_explicit(&fault[1], 8u, memory_order_relaxed);
        }
        atomic_fetch_add_explicit(&fault[2], 1u, memory_order_relaxed);
    }
}

kernel void lanes(device uint* b0 [[buffer(0)]],
                  device atomic_uint* fault [[buffer(1)]],
                  uint index [[thread_index_in_threadgroup]]) {
    threadgroup half narrow[64];
    threadgroup float4 wide[LANES];
    threadgroup uint last;
    uint x = b0[index];
    float f = float(x);
    if (index == 0) last = atomic_load_explicit(&fault[3], memory_order_relaxed);
    narrow[index & 63] = half(f);
    wide[index & 31] = float4(f, 1.0f, 2.0f, 3.0f);
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    x += simd_shuffle(x, 3) + simd_shuffle_xor(x, 1) + simd_shuffle_down(x, 2) + simd_broadcast(x, 0);
    x += uint(simd_shuffle(int(x), 3) + simd_shuffle_xor(int(x), 1) + simd_shuffle_down(int(x), 2));
    f += simd_shuffle(f, 3) + simd_shuffle_down(f, 2) + simd_broadcast(f, 0) + wide[1].z;
    f += float(simd_shuffle(narrow[0], 1)) + float(simd_broadcast(narrow[1], 0));
    b0[index] = x + uint(f) + tl_ballot(f > 0.0f) + last + as_type<uint>(simd_shuffle(as_type<float>(x), 0));
}

kernel void vectors(device const uint4* b0 [[buffer(0)]], device uint4* b1 [[buffer(1)]],
                    device const half4* b2 [[buffer(2)]], device half4* b3 [[buffer(3)]],
                    device const bfloat4* b4 [[buffer(4)]], device bfloat4* b5 [[buffer(5)]],
                    device const ulong2* b6 [[buffer(6)]], device ulong2* b7 [[buffer(7)]],
                    device const uchar4* b8 [[buffer(8)]], device uchar4* b9 [[buffer(9)]],
                    device float4* b10 [[buffer(10)]], device float2* b11 [[buffer(11)]],
                    device int4* b12 [[buffer(12)]], device int2* b13 [[buffer(13)]],
                    device bool* b14 [[buffer(14)]],
                    uint index [[thread_index_in_threadgroup]]) {
    b1[index] = b0[index];
    half4 h = b2[index];
    b3[index] = half4(h.w, h[2], h.y, h.x);
    bfloat2 pair = bfloat2(b4[index].x, bfloat(float(b4[index].w)));
    b5[index] = bfloat4(pair.x, pair.y, pair.x, as_type<bfloat2>(as_type<uint>(pair)).y);
    b7[index] = ulong2(b6[index].y, as_type<ulong>(uint2(1, 2)));
    b9[index] = uchar4(b8[index].x, 1, 2, uchar(b8[index].y));
    b10[index] = as_type<float4>(b0[index]);
    b11[index] = float2(float(as_type<half>(ushort(index))), float(as_type<bfloat>(ushort(index))));
    b12[index] = int4(int(as_type<long>(b6[index].x)), 1, as_type<ushort>(h.x), as_type<ushort>(pair.x));
    b13[index] = int2(b12[index].x, b12[index][3]);
    b14[index] = isnan(LOWEST);
}

kernel void mathematics(device float* b0 [[buffer(0)]], device int* b1 [[buffer(1)]], constant Args& args [[buffer(2)]],
                        uint index [[thread_index_in_threadgroup]]) {
    float x = b0[index];
    x += exp(x) + exp2(x) + log(x) + log2(x) + log10(x) + sqrt(x) + rsqrt(x) + sin(x) + cos(x) + tan(x) + tanh(x);
    x += pow(x, args.scale) + fmod(x, args.scale) + fabs(x) + floor(x) + ceil(x) + rint(x) + trunc(x);
    x += copysign(x, args.scale) + ldexp(x, args.rows) + fma(x, x, args.scale) + NAN;
    x += tl_expm1(x) + tl_erf(x) + tl_tanh(x) + tl_log1p(x) + tl_sigmoid(x) + tl_softplus(x) + tl_max(x, 0.0f);
    b0[index] = x;
    int i = b1[index];
    uint u = uint(i);
    long l = args.n;
    ulong w = as_type<ulong>(l);
    i += int(isnan(x)) + int(isinf(x)) + int(isfinite(x)) + min(i, 3) + max(i, 5) + abs(i) + clamp(i, 0, 7);
    u += min(u, 3u) + max(u, 7u) + clamp(u, 1u, 9u) + mulhi(u, 77u) + popcount(u) + ctz(u) + clz(u);
    l += min(l, long(3)) + max(l, long(4)) + abs(l) + clamp(l, long(0), long(5)) + tl_pow(l, l) + tl_div(l, l);
    b1[index] = i + int(u) + int(l) + int(min(w, ulong(3)));
}

kernel void matrices(device const half* b0 [[buffer(0)]], device float* b1 [[buffer(1)]],
                     uint index [[thread_index_in_threadgroup]]) {
    threadgroup half narrow[64];
    threadgroup float wide[64];
    narrow[index] = b0[index];
    narrow[index + 32] = b0[index + 32];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_half8x8 a, b;
    simdgroup_float8x8 sums = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    simdgroup_load(a, narrow, 8);
    simdgroup_load(b, narrow, 8, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sums, a, b, sums);
    simdgroup_store(sums, wide, 8);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    b1[index] = wide[index];
    b1[index + 32] = wide[index + 32];
}
