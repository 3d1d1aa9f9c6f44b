inline float op_add(float a, float b) { return tl_add(a, b); }
inline float op_gelu(float x) { return x * tl_sigmoid((x * x * 0.044715f + 1.0f) * x * 1.5957691f); }
struct Args {
    int n;
    int packets;
    int x1_extent;
    int v0_at;
    int v0_i0;
    int v1_at;
    int o0_at;
    int o0_i0;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void map_add_gelu(device const float* b0 [[buffer(0)]],
                         device const float* b1 [[buffer(1)]],
                         device float* b2 [[buffer(2)]],
                         constant Args& args [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint tid [[thread_index_in_threadgroup]]) {
    const int packet = int(group.x) * 256 + int(tid);
    if (packet >= args.packets) return;
    const int x1 = packet % args.x1_extent;
    const int x0 = packet / args.x1_extent;
    const int first = x1 * 4;
    const uint count = 4;
    float p0[4];
    tl_load<4>(b0 + (args.v0_at + x0 * args.v0_i0 + first), count, p0);
    float p1[4];
    tl_load<4>(b1 + (args.v1_at + first), count, p1);
    float o0[4];
    for (uint u = 0; u < 4; ++u) {
        const float v0 = p0[u];
        const float v1 = p1[u];
        const float v2 = op_add(v0, v1);
        const float v3 = op_gelu(v2);
        o0[u] = v3;
    }
    tl_store<4>(b2 + (args.o0_at + x0 * args.o0_i0 + first), count, o0);
}
// map_add_gelu: [1, 1, 1] groups of 256 threads

