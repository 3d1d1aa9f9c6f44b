struct Args {
    long limit;
    int columns;
    int source_at;
    int source_step;
    int index_at;
    int index_step;
    int out_at;
    int out_step;
    uint tag;
    int terms;
};
kernel void scatter(device const float* b0 [[buffer(0)]],
                    device const long* b1 [[buffer(1)]],
                    device atomic_uint* fault [[buffer(2)]],
                    device float* b3 [[buffer(3)]],
                    constant Args& args [[buffer(4)]],
                    uint3 group [[threadgroup_position_in_grid]],
                    uint tid [[thread_index_in_threadgroup]]) {
    const int column = int(group.x) * 256 + int(tid);
    if (column >= args.columns) return;
    const int x0 = column;
    const int to = args.out_at + x0;
    for (int i = 0; i < int(args.limit); ++i) b3[to + i * args.out_step] = float(0);
    for (int term = 0; term < args.terms; ++term) {
        const long i = long(b1[args.index_at + term * args.index_step]);
        if (!tl_fault_in_range(i, args.limit, true, fault, args.tag)) continue;
        const int place = to + int(i) * args.out_step;
        b3[place] = tl_add(b3[place], float(b0[args.source_at + x0 + term * args.source_step]));
    }
}
// scatter: [1, 1, 1] groups of 256 threads

inline float op_add(float a, float b) { return tl_add(a, b); }
struct Args {
    int n;
    int v0_at;
    int v1_at;
    int o0_at;
};
kernel void map_add(device const float* b0 [[buffer(0)]],
                    device const float* b1 [[buffer(1)]],
                    device float* b2 [[buffer(2)]],
                    constant Args& args [[buffer(3)]],
                    uint3 group [[threadgroup_position_in_grid]],
                    uint tid [[thread_index_in_threadgroup]]) {
    const int packet = int(group.x) * 256 + int(tid);
    const int x0 = packet * 4;
    if (x0 >= args.n) return;
    const uint count = min(int(4), args.n - x0);
    float p0[4];
    tl_load<4>(b0 + (args.v0_at + x0), count, p0);
    float p1[4];
    tl_load<4>(b1 + (args.v1_at + x0), count, p1);
    float o0[4];
    for (uint u = 0; u < 4; ++u) {
        const float v0 = p0[u];
        const float v1 = p1[u];
        const float v2 = op_add(v0, v1);
        o0[u] = v2;
    }
    tl_store<4>(b2 + (args.o0_at + x0), count, o0);
}
// map_add: [4, 1, 1] groups of 256 threads

