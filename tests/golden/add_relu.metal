inline float op_add(float a, float b) { return tl_add(a, b); }
inline float op_relu(float x) { return tl_relu(x); }
struct Args {
    int n;
    int v0_at;
    int v1_at;
    int o0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void map_add_relu(device const half* b0 [[buffer(0)]],
                         device const half* b1 [[buffer(1)]],
                         device half* b2 [[buffer(2)]],
                         constant Args& args [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint tid [[thread_index_in_threadgroup]]) {
    const int packet = int(group.x) * 256 + int(tid);
    const int x0 = packet * 8;
    if (x0 >= args.n) return;
    const uint count = 8;
    float p0[8];
    tl_load<8>(b0 + (args.v0_at + x0), count, p0);
    float p1[8];
    tl_load<8>(b1 + (args.v1_at + x0), count, p1);
    float o0[8];
    for (uint u = 0; u < 8; ++u) {
        const float v0 = p0[u];
        const float v1 = p1[u];
        const float v2 = op_add(v0, v1);
        const float v3 = op_relu(v2);
        o0[u] = v3;
    }
    tl_store<8>(b2 + (args.o0_at + x0), count, o0);
}
// map_add_relu: [1, 1, 1] groups of 256 threads

