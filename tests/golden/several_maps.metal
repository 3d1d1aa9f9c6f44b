inline float op_sqr(float x) { return tl_mul(x, x); }
struct Args {
    device const float* b0;
    device float* b1;
    int n;
    int v0_at;
    int o0_at;
};
struct Parts {
    Args part[113];
    uint count;
    uint first[114];
};
[[max_total_threads_per_threadgroup(256)]]
kernel void map_sqr_table(constant Parts& parts [[buffer(0)]],
                          uint3 place [[threadgroup_position_in_grid]],
                          uint tid [[thread_index_in_threadgroup]]) {
    uint part = 0;
    while (part + 1 < parts.count && place.x >= parts.first[part + 1]) ++part;
    const uint3 group = uint3(place.x - parts.first[part], 0, 0);
    constant Args& args = parts.part[part];
    device const float* b0 = args.b0;
    device float* b1 = args.b1;
    const int packet = int(group.x) * 256 + int(tid);
    const int x0 = packet * 4;
    if (x0 >= args.n) return;
    const uint count = min(int(4), args.n - x0);
    float p0[4];
    tl_load<4>(b0 + (args.v0_at + x0), count, p0);
    float o0[4];
    for (uint u = 0; u < 4; ++u) {
        const float v0 = p0[u];
        const float v1 = op_sqr(v0);
        o0[u] = v1;
    }
    tl_store<4>(b1 + (args.o0_at + x0), count, o0);
}
// map_sqr_table: [2, 1, 1] groups of 256 threads

