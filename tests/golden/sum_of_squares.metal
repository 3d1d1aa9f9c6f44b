inline float op_sub(float a, float b) { return tl_sub(a, b); }
inline float op_sqr(float x) { return tl_mul(x, x); }
struct Args {
    int rows;
    int n;
    int segment_len;
    int v0_at;
    int v1_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void rows_sub_sqr_sum(device const float* b0 [[buffer(0)]],
                             device const float* b1 [[buffer(1)]],
                             device float* partial4 [[buffer(2)]],
                             constant Args& args [[buffer(3)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint tid [[thread_index_in_threadgroup]]) {
    threadgroup float team_float[32];
    const TlTeam<int> team = tl_team<int>(group.x, tid, 256, 256, args.rows);
    const int row = team.row;
    const uint lane = team.lane;
    const bool live = team.live;
    const bool first = team.first;
    const uint segment = group.y;
    float f4 = TlSum<float>::empty();
    const int end1 = min(args.n, (int(segment) + 1) * args.segment_len);
    for (int j = int(segment) * args.segment_len + int(lane) * 4; j < end1; j += 1024) {
        const uint count = 4;
        const int x0 = j;
        float p0[4];
        tl_load<4>(b0 + (args.v0_at + x0), count, p0);
        float p1[4];
        tl_load<4>(b1 + (args.v1_at + x0), count, p1);
        for (uint u = 0; u < 4; ++u) {
            const float v0 = p0[u];
            const float v1 = p1[u];
            const float v2 = op_sub(v0, v1);
            const float v3 = op_sqr(v2);
            if (u < count) f4 = TlSum<float>::both(f4, v3);
        }
    }
    f4 = tl_fold_group<TlSum<float>>(f4, team_float, tid, 8);
    if (first) partial4[int(segment) * args.rows + row] = f4;
}
struct Args1 {
    int rows;
    uint segments;
    int o0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void rows_sub_sqr_sum_1(device const float* partial4 [[buffer(0)]],
                               device float* b1 [[buffer(1)]],
                               constant Args1& args [[buffer(2)]],
                               uint3 group [[threadgroup_position_in_grid]],
                               uint tid [[thread_index_in_threadgroup]]) {
    threadgroup float team_float[32];
    const TlTeam<int> team = tl_team<int>(group.x, tid, 256, 256, args.rows);
    const int row = team.row;
    const uint lane = team.lane;
    const bool live = team.live;
    const bool first = team.first;
    const uint segment = group.y;
    float f4 = TlSum<float>::empty();
    for (uint s = lane; s < args.segments; s += 256) {
        f4 = TlSum<float>::both(f4, partial4[int(s) * args.rows + row]);
    }
    f4 = tl_fold_group<TlSum<float>>(f4, team_float, tid, 8);
    const float v4 = f4;
    if (first && segment == 0) {
        b1[args.o0_at] = float(v4);
    }
}
// rows_sub_sqr_sum: [1, 512, 1] groups of 256 threads
// rows_sub_sqr_sum_1: [1, 1, 1] groups of 256 threads

