inline float op_sub(float a, float b) { return tl_sub(a, b); }
inline float op_exp_narrow(float x) { return tl_fast_exp2(x * 1.44269504f); }
struct Args {
    int rows;
    int n;
    int v0_at;
    int v0_o0;
    int o0_at;
    int o0_o0;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void rows_max_sub_exp_sum(device const half* b0 [[buffer(0)]],
                                 device half* b1 [[buffer(1)]],
                                 constant Args& args [[buffer(2)]],
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
    float k0[32];
    float k4[32];
    float f2 = TlMax<float>::empty();
    for (uint c = 0; c < 4; ++c) {
        const int j = int(c) * 256 + int(lane) * 8;
        const uint count = 8;
        const int x0 = j;
        tl_load<8>(b0 + (args.v0_at + r0 * args.v0_o0 + x0), count, k0 + c * 8);
        for (uint u = 0; u < 8; ++u) {
            const float v0 = k0[c * 8 + u];
            const float v1 = v0;
            if (u < count) f2 = TlMax<float>::both(f2, v1);
        }
    }
    f2 = tl_fold_lanes<TlMax<float>>(f2, width);
    const float v2 = f2;
    float f5 = TlSum<float>::empty();
    for (uint c = 0; c < 4; ++c) {
        const int j = int(c) * 256 + int(lane) * 8;
        const uint count = 8;
        const int x0 = j;
        for (uint u = 0; u < 8; ++u) {
            const float v0 = k0[c * 8 + u];
            const float v1 = v0;
            const float v3 = op_sub(v1, v2);
            const float v4 = op_exp_narrow(v3);
            k4[c * 8 + u] = v4;
            if (u < count) f5 = TlSum<float>::both(f5, v4);
        }
    }
    f5 = tl_fold_lanes<TlSum<float>>(f5, width);
    const float v5 = f5;
    for (uint c = 0; c < 4; ++c) {
        const int j = int(c) * 256 + int(lane) * 8;
        const uint count = 8;
        const int x0 = j;
        float o0[8];
        for (uint u = 0; u < 8; ++u) {
            const float v4 = k4[c * 8 + u];
            const float v6 = v4 * (1.0f / v5);
            const float v7 = v6;
            o0[u] = v7;
        }
        tl_store<8>(b1 + (args.o0_at + r0 * args.o0_o0 + x0), count, o0);
    }
}
// rows_max_sub_exp_sum: [512, 1, 1] groups of 256 threads

