struct Args {
    int packets;
    int n;
    int segment_len;
    int v0_at;
    int v0_i0;
    int rows;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void columns_sum(device const half* b0 [[buffer(0)]],
                        device float* partial1 [[buffer(1)]],
                        constant Args& args [[buffer(2)]],
                        uint3 group [[threadgroup_position_in_grid]],
                        uint tid [[thread_index_in_threadgroup]]) {
    threadgroup float team_float[2080];
    const uint segment = group.y;
    float a1[8];
    for (uint u = 0; u < 8; ++u) a1[u] = TlSum<float>::empty();
    {
        const TlTeam<int> team = tl_column<int>(group.x, tid, 32, args.packets);
        const int row = team.row * 8;
        const uint lane = team.lane;
        const bool live = team.live;
        const int r0 = row;
        float k0[32];
        const int end = live ? min(args.n, (int(segment) + 1) * args.segment_len) : 0;
        for (int i = int(segment) * args.segment_len + int(lane); i < end; i += 32) {
            for (uint c = 0; c < 4; ++c) {
                const uint count = 8;
                const int j = min(i + int(c) * 8, end - 1);
                const int x0 = j;
                tl_load<8>(b0 + (args.v0_at + x0 * args.v0_i0 + r0), count, k0 + c * 8);
            }
            for (uint c = 0; c < 4; ++c) {
                const int j = i + int(c) * 8;
                const uint count = j < end ? 8 : 0;
                const int x0 = j;
                for (uint u = 0; u < 8; ++u) {
                    const float v0 = k0[c * 8 + u];
                    if (u < count) a1[u] = TlSum<float>::both(a1[u], v0);
                }
            }
        }
    }
    const TlTeam<int> team = tl_column<int>(group.x, tid, 256, args.rows);
    const int row = team.row;
    const bool live = team.live;
    const bool first = team.first;
    const int r0 = row;
    const float f1 = tl_fold_packets<TlSum<float>, 8>(a1, team_float, tid, 32, 8);
    if (first) partial1[int(segment) * args.rows + row] = f1;
}
struct Args1 {
    int rows;
    uint segments;
    int o0_at;
};
[[max_total_threads_per_threadgroup(1024)]]
kernel void rows_sum_1(device const float* partial1 [[buffer(0)]],
                       device half* b1 [[buffer(1)]],
                       constant Args1& args [[buffer(2)]],
                       uint3 group [[threadgroup_position_in_grid]],
                       uint tid [[thread_index_in_threadgroup]]) {
    threadgroup float team_float[1024];
    const TlTeam<int> team = tl_column<int>(group.x, tid, 32, args.rows);
    const int row = team.row;
    const uint lane = team.lane;
    const bool live = team.live;
    const bool first = team.first;
    const uint segment = group.y;
    const int r0 = row;
    float f1 = TlSum<float>::empty();
    for (uint s = lane; s < args.segments; s += 32) {
        f1 = TlSum<float>::both(f1, partial1[int(s) * args.rows + row]);
    }
    f1 = tl_fold_slices<TlSum<float>>(f1, team_float, tid, 32, 32);
    const float v1 = f1;
    if (first && segment == 0) {
        b1[args.o0_at + r0] = half(v1);
    }
}
// columns_sum: [4, 64, 1] groups of 256 threads
// rows_sum_1: [32, 1, 1] groups of 1024 threads

