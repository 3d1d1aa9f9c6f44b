inline uchar op_eq(long a, long b) { return a == b; }
inline float op_sub(float a, float b) { return tl_sub(a, b); }
inline float op_exp(float x) { return exp(x); }
inline float op_ln(float x) { return log(x); }
inline float op_where_cond(uchar cond, float then, float other) { return cond ? then : other; }
struct Args {
    long limit2;
    int rows;
    uint width;
    int v1_at;
    uint tag2;
    float s11;
    float s15;
    int n;
    int v4_at;
    int v4_o0;
    int v0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void rows_eq_max_sub_exp(device const long* b0 [[buffer(0)]],
                                device atomic_uint* fault [[buffer(1)]],
                                device const float* b2 [[buffer(2)]],
                                device float* note14 [[buffer(3)]],
                                constant Args& args [[buffer(4)]],
                                uint3 group [[threadgroup_position_in_grid]],
                                uint tid [[thread_index_in_threadgroup]]) {
    const uint width = args.width;
    const TlTeam<int> team = tl_team<int>(group.x, tid, width, 256, args.rows);
    const int row = team.row;
    const uint lane = team.lane;
    const bool live = team.live;
    const bool first = team.first;
    const int r0 = row;
    uchar k3[4];
    float k4[4];
    float k6[4];
    const long v1 = long(b0[args.v1_at + r0]);
    tl_fault_in_range(long(v1), args.limit2, live, fault, args.tag2);
    const long v2 = v1;
    const float v11 = args.s11;
    float f5 = TlMax<float>::empty();
    for (uint c = 0; c < 1; ++c) {
        const int j = int(c) * int(width) * 4 + int(lane) * 4;
        const uint count = live && j < args.n ? min(int(4), args.n - j) : 0;
        const int x0 = j;
        tl_load_strided<4>(b2 + (args.v4_at + r0 * args.v4_o0 + x0), 1, count, k4 + c * 4);
        for (uint u = 0; u < 4; ++u) {
            const long v0 = args.v0_at + (x0 + int(u));
            const uchar v3 = op_eq(v0, v2);
            k3[c * 4 + u] = v3;
            const float v4 = k4[c * 4 + u];
            if (u < count) f5 = TlMax<float>::both(f5, v4);
        }
    }
    f5 = tl_fold_lanes<TlMax<float>>(f5, width);
    const float v5 = f5;
    float f8 = TlSum<float>::empty();
    for (uint c = 0; c < 1; ++c) {
        const int j = int(c) * int(width) * 4 + int(lane) * 4;
        const uint count = live && j < args.n ? min(int(4), args.n - j) : 0;
        const int x0 = j;
        for (uint u = 0; u < 4; ++u) {
            const float v4 = k4[c * 4 + u];
            const float v6 = op_sub(v4, v5);
            k6[c * 4 + u] = v6;
            const float v7 = op_exp(v6);
            if (u < count) f8 = TlSum<float>::both(f8, v7);
        }
    }
    f8 = tl_fold_lanes<TlSum<float>>(f8, width);
    const float v8 = f8;
    const float v9 = op_ln(v8);
    float f13 = TlSum<float>::empty();
    for (uint c = 0; c < 1; ++c) {
        const int j = int(c) * int(width) * 4 + int(lane) * 4;
        const uint count = live && j < args.n ? min(int(4), args.n - j) : 0;
        const int x0 = j;
        for (uint u = 0; u < 4; ++u) {
            const uchar v3 = k3[c * 4 + u];
            const float v6 = k6[c * 4 + u];
            const float v10 = op_sub(v6, v9);
            const float v12 = op_where_cond(v3, v10, v11);
            if (u < count) f13 = TlSum<float>::both(f13, v12);
        }
    }
    f13 = tl_fold_lanes<TlSum<float>>(f13, width);
    const float v13 = f13;
    if (first) {
        note14[row] = v13;
    }
}
inline float op_div(float a, float b) { return tl_div(a, b); }
inline float op_neg(float x) { return tl_neg(x); }
struct Args1 {
    int rows;
    float s15;
    int o0_at;
};
[[max_total_threads_per_threadgroup(1024)]]
kernel void rows_eq_max_sub_exp_1(device const float* note14 [[buffer(0)]],
                                  device float* b1 [[buffer(1)]],
                                  constant Args1& args [[buffer(2)]],
                                  uint3 group [[threadgroup_position_in_grid]],
                                  uint tid [[thread_index_in_threadgroup]]) {
    threadgroup float team_float[32];
    float f14 = TlSum<float>::empty();
    for (int r = int(tid); r < args.rows; r += 1024) {
        f14 = TlSum<float>::both(f14, note14[r]);
    }
    f14 = tl_fold_group<TlSum<float>>(f14, team_float, tid, 32);
    const float v14 = f14;
    const float v15 = args.s15;
    const float v16 = op_div(v14, v15);
    const float v17 = op_neg(v16);
    if (tid == 0) {
        b1[args.o0_at] = float(v17);
    }
}
// rows_eq_max_sub_exp: [1, 1, 1] groups of 256 threads
// rows_eq_max_sub_exp_1: [1, 1, 1] groups of 1024 threads

