struct Args {
    int packets;
    int n;
    int v0_at;
    int v0_i0;
    int rows;
    int o0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void columns_argmax(device const int* b0 [[buffer(0)]],
                           device long* b1 [[buffer(1)]],
                           constant Args& args [[buffer(2)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint tid [[thread_index_in_threadgroup]]) {
    threadgroup TlBestInt team_TlBestInt[1056];
    TlBestInt a1[4];
    for (uint u = 0; u < 4; ++u) a1[u] = TlArgMax<int>::empty();
    {
        const TlTeam<int> team = tl_column<int>(group.x, tid, 16, args.packets);
        const int row = team.row * 4;
        const uint lane = team.lane;
        const bool live = team.live;
        const int r0 = row;
        int k0[16];
        const int end = live ? args.n : 0;
        for (int i = int(lane); i < end; i += 64) {
            for (uint c = 0; c < 4; ++c) {
                const uint count = 4;
                const int j = min(i + int(c) * 16, end - 1);
                const int x0 = j;
                tl_load<4>(b0 + (args.v0_at + x0 * args.v0_i0 + r0), count, k0 + c * 4);
            }
            for (uint c = 0; c < 4; ++c) {
                const int j = i + int(c) * 16;
                const uint count = j < end ? 4 : 0;
                const int x0 = j;
                for (uint u = 0; u < 4; ++u) {
                    const int v0 = k0[c * 4 + u];
                    if (u < count) a1[u] = TlArgMax<int>::both(a1[u], TlArgMax<int>::at(v0, long(j)));
                }
            }
        }
    }
    const TlTeam<int> team = tl_column<int>(group.x, tid, 64, args.rows);
    const int row = team.row;
    const bool live = team.live;
    const bool first = team.first;
    const int r0 = row;
    const TlBestInt f1 = tl_fold_packets<TlArgMax<int>, 4>(a1, team_TlBestInt, tid, 16, 16);
    const long v1 = f1.index;
    if (first) {
        b1[args.o0_at + r0] = long(v1);
    }
}
// columns_argmax: [1, 1, 1] groups of 256 threads

