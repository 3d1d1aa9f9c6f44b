struct Args {
    TlScatter scatter;
    long source_at;
    long limit;
    long index_at;
    long row_step;
    long column_step;
    uint tag;
};
struct Epilogue {
    device float* out;
    constant Args* arguments;
    void operator()(uint row, uint column, float sum) const {
        constant Args& args = *arguments;
        out[long(row) * args.row_step + long(column) * args.column_step] = float(sum);
    }
};
[[max_total_threads_per_threadgroup(256)]]
kernel void scatter_rows(device const float* b0 [[buffer(0)]],
                         device const long* b1 [[buffer(1)]],
                         device atomic_uint* fault [[buffer(2)]],
                         device float* b3 [[buffer(3)]],
                         constant Args& args [[buffer(4)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint tid [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    if (group.x == 0 && group.y == 0) {
        for (uint t = tid; t < args.scatter.terms; t += 256) {
            tl_fault_in_range(long(b1[args.index_at + long(t) * args.scatter.index_term]), args.limit, true, fault, args.tag);
        }
    }
    const Epilogue epilogue = {b3, &args};
    tl_scatter_rows<float, float, long, 1>(b0 + args.source_at, b1 + args.index_at, args.scatter, matches, epilogue, group, tid);
}
// scatter_rows: [50, 1, 1] groups of 256 threads

inline float op_add(float a, float b) { return tl_add(a, b); }
struct Args {
    int n;
    int v0_at;
    int v1_at;
    int o0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void map_add(device const float* b0 [[buffer(0)]],
                    device const float* b1 [[buffer(1)]],
                    device float* b2 [[buffer(2)]],
                    constant Args& args [[buffer(3)]],
                    uint3 group [[threadgroup_position_in_grid]],
                    uint tid [[thread_index_in_threadgroup]]) {
    const int packet = int(group.x) * 256 + int(tid);
    const int x0 = packet * 4;
    if (x0 >= args.n) return;
    const uint count = 4;
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

