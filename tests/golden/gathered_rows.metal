struct Args {
    long limit1;
    int n;
    int packets;
    int x1_extent;
    int v0_at;
    uint tag1;
    int v1_at;
    int v1_step;
    int o0_at;
    int o0_i0;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void map_gather(device const long* b0 [[buffer(0)]],
                       device atomic_uint* fault [[buffer(1)]],
                       device const half* b2 [[buffer(2)]],
                       device half* b3 [[buffer(3)]],
                       constant Args& args [[buffer(4)]],
                       uint3 group [[threadgroup_position_in_grid]],
                       uint tid [[thread_index_in_threadgroup]]) {
    const int packet = int(group.x) * 256 + int(tid);
    if (packet >= args.packets) return;
    const int x1 = packet % args.x1_extent;
    const int x0 = packet / args.x1_extent;
    const int first = x1 * 8;
    const uint count = 8;
    const long v0 = count > 0 ? long(b0[args.v0_at + x0]) : long(0);
    float o0[8];
    for (uint u = 0; u < 8; ++u) {
        const float v1 = tl_fault_in_range(long(v0), args.limit1, u < count, fault, args.tag1) ? float(b2[args.v1_at + (first + int(u)) + int(v0) * args.v1_step]) : float(0);
        o0[u] = v1;
    }
    tl_store<8>(b3 + (args.o0_at + x0 * args.o0_i0 + first), count, o0);
}
// map_gather: [1, 1, 1] groups of 256 threads

