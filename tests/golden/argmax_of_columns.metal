struct Args {
    int rows;
    int n;
    int v0_at;
    int v0_i0;
    int o0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void rows_argmax(device const int* b0 [[buffer(0)]],
                        device long* b1 [[buffer(1)]],
                        constant Args& args [[buffer(2)]],
                        uint3 group [[threadgroup_position_in_grid]],
                        uint tid [[thread_index_in_threadgroup]]) {
    threadgroup TlBestInt team_TlBestInt[256];
    const TlTeam<int> team = tl_column<int>(group.x, tid, 32, args.rows);
    const int row = team.row;
    const uint lane = team.lane;
    const bool live = team.live;
    const bool first = team.first;
    const int r0 = row;
    TlBestInt f1 = TlArgMax<int>::empty();
    const int end1 = args.n;
    for (int j = int(lane); j < end1; j += 8) {
        if (live) {
            const int x0 = j;
            const int v0 = int(b0[args.v0_at + r0 + x0 * args.v0_i0]);
            f1 = TlArgMax<int>::both(f1, TlArgMax<int>::at(v0, long(j) + long(0)));
        }
    }
    f1 = tl_fold_slices<TlArgMax<int>>(f1, team_TlBestInt, tid, 32, 8);
    const long v1 = f1.index;
    if (first) {
        b1[args.o0_at + r0] = long(v1);
    }
}
// rows_argmax: [2, 1, 1] groups of 256 threads

