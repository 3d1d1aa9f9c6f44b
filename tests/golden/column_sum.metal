struct Args {
    int rows;
    int n;
    int segment_len;
    int v0_at;
    int v0_i0;
};
[[max_total_threads_per_threadgroup(1024)]]
kernel void rows_sum(device const half* b0 [[buffer(0)]],
                     device float* partial1 [[buffer(1)]],
                     constant Args& args [[buffer(2)]],
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
    const int end1 = min(args.n, (int(segment) + 1) * args.segment_len);
    for (int j = int(segment) * args.segment_len + int(lane); j < end1; j += 32) {
        if (live) {
            const int x0 = j;
            const float v0 = float(b0[args.v0_at + r0 + x0 * args.v0_i0]);
            f1 = TlSum<float>::both(f1, v0);
        }
    }
    f1 = tl_fold_slices<TlSum<float>>(f1, team_float, tid, 32, 32);
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
// rows_sum: [32, 4, 1] groups of 1024 threads
// rows_sum_1: [32, 1, 1] groups of 1024 threads

