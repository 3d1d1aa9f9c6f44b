inline float op_sub(float a, float b) { return tl_sub(a, b); }
inline float op_sqr(float x) { return tl_mul(x, x); }
inline float op_add(float a, float b) { return tl_add(a, b); }
inline float op_rsqrt(float x) { return 1.0f / sqrt(x); }
inline float op_mul(float a, float b) { return tl_mul(a, b); }
struct Args {
    int rows;
    float s3;
    float s8;
    float s10;
    int n;
    int v0_at;
    int v0_o0;
    int v14_at;
    int v17_at;
    int o0_at;
    int o0_o0;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void rows_sum_div_sub_sqr(device const bfloat* b0 [[buffer(0)]],
                                 device const bfloat* b1 [[buffer(1)]],
                                 device const bfloat* b2 [[buffer(2)]],
                                 device bfloat* b3 [[buffer(3)]],
                                 constant Args& args [[buffer(4)]],
                                 uint3 group [[threadgroup_position_in_grid]],
                                 uint tid [[thread_index_in_threadgroup]]) {
    const uint width = 32;
    const TlTeam<int> team = tl_team<int>(group.x, tid, width, 256, args.rows);
    const int row = team.row;
    const uint lane = team.lane;
    const bool live = team.live;
    const bool first = team.first;
    if (!live) return;
    const int r0 = row;
    float k0[24];
    float k5[24];
    const float v3 = args.s3;
    const float v8 = args.s8;
    const float v10 = args.s10;
    float f2 = TlSum<float>::empty();
    for (uint c = 0; c < 3; ++c) {
        const int j = int(c) * 256 + int(lane) * 8;
        const uint count = 8;
        const int x0 = j;
        tl_load<8>(b0 + (args.v0_at + r0 * args.v0_o0 + x0), count, k0 + c * 8);
        for (uint u = 0; u < 8; ++u) {
            const float v0 = k0[c * 8 + u];
            const float v1 = v0;
            if (u < count) f2 = TlSum<float>::both(f2, v1);
        }
    }
    f2 = tl_fold_lanes<TlSum<float>>(f2, width);
    const float v2 = f2;
    const float v4 = v2 * (1.0f / v3);
    float f7 = TlSum<float>::empty();
    for (uint c = 0; c < 3; ++c) {
        const int j = int(c) * 256 + int(lane) * 8;
        const uint count = 8;
        const int x0 = j;
        for (uint u = 0; u < 8; ++u) {
            const float v0 = k0[c * 8 + u];
            const float v1 = v0;
            const float v5 = op_sub(v1, v4);
            k5[c * 8 + u] = v5;
            const float v6 = op_sqr(v5);
            if (u < count) f7 = TlSum<float>::both(f7, v6);
        }
    }
    f7 = tl_fold_lanes<TlSum<float>>(f7, width);
    const float v7 = f7;
    const float v9 = v7 * (1.0f / v8);
    const float v11 = op_add(v9, v10);
    const float v12 = op_rsqrt(v11);
    for (uint c = 0; c < 3; ++c) {
        const int j = int(c) * 256 + int(lane) * 8;
        const uint count = 8;
        const int x0 = j;
        float p14[8];
        tl_load<8>(b1 + (args.v14_at + x0), count, p14);
        float p17[8];
        tl_load<8>(b2 + (args.v17_at + x0), count, p17);
        float o0[8];
        for (uint u = 0; u < 8; ++u) {
            const float v5 = k5[c * 8 + u];
            const float v13 = op_mul(v5, v12);
            const float v14 = p14[u];
            const float v15 = v14;
            const float v16 = op_mul(v13, v15);
            const float v17 = p17[u];
            const float v18 = v17;
            const float v19 = op_add(v16, v18);
            const float v20 = v19;
            o0[u] = v20;
        }
        tl_store<8>(b3 + (args.o0_at + r0 * args.o0_o0 + x0), count, o0);
    }
}
// rows_sum_div_sub_sqr: [8, 1, 1] groups of 256 threads

