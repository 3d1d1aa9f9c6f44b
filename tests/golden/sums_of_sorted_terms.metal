struct Args {
    int n;
    int v0_at;
    int o0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void map(device const half* b0 [[buffer(0)]],
                device float* b1 [[buffer(1)]],
                constant Args& args [[buffer(2)]],
                uint3 group [[threadgroup_position_in_grid]],
                uint tid [[thread_index_in_threadgroup]]) {
    const int packet = int(group.x) * 256 + int(tid);
    const int x0 = packet * 8;
    if (x0 >= args.n) return;
    const uint count = 8;
    float p0[8];
    tl_load<8>(b0 + (args.v0_at + x0), count, p0);
    float o0[8];
    for (uint u = 0; u < 8; ++u) {
        const float v0 = p0[u];
        const float v1 = v0;
        o0[u] = v1;
    }
    tl_store<8>(b1 + (args.o0_at + x0), count, o0);
}
// map: [22, 1, 1] groups of 256 threads

struct Args {
    TlScatter scatter;
    long limit;
    long index_at;
    uint tag;
    uint rows;
};
[[max_total_threads_per_threadgroup(512)]]
kernel void scatter_sort(device uint* sorted [[buffer(0)]],
                         device const long* b1 [[buffer(1)]],
                         device atomic_uint* fault [[buffer(2)]],
                         constant Args& args [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint tid [[thread_index_in_threadgroup]]) {
    threadgroup uint keys[1024];
    const uint end = min(args.scatter.terms, (group.x + 1) * 1024);
    for (uint t = group.x * 1024 + tid; t < end; t += 512) {
        tl_fault_in_range(long(b1[args.index_at + long(t) * args.scatter.index_term]), args.limit, true, fault, args.tag);
    }
    tl_scatter_sort<1024, 512, long>(b1 + args.index_at, args.scatter, args.rows, sorted, keys, group, tid);
}
struct Args1 {
    int n;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void scatter_zero_1(device float* b0 [[buffer(0)]],
                           constant Args1& args [[buffer(1)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint tid [[thread_index_in_threadgroup]]) {
    for (uint u = 0; u < 4; ++u) {
        const int i = (int(group.x) * 4 + u) * 256 + int(tid);
        if (i < args.n) b0[i] = float(float(0));
    }
}
struct Args2 {
    TlScatter scatter;
    long source_at;
    long row_step;
    long column_step;
};
struct Epilogue {
    device float* out;
    constant Args2* arguments;
    void operator()(uint row, uint column, float sum) const {
        constant Args2& args = *arguments;
        out[long(row) * args.row_step + long(column) * args.column_step] = float(sum);
    }
};
[[max_total_threads_per_threadgroup(256)]]
kernel void scatter_sorted_2(device const uint* sorted [[buffer(0)]],
                             device const float* b1 [[buffer(1)]],
                             device float* b2 [[buffer(2)]],
                             constant Args2& args [[buffer(3)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint tid [[thread_index_in_threadgroup]]) {
    const Epilogue epilogue = {b2, &args};
    tl_scatter_sorted<1024, float, float, 1>(b1 + args.source_at, sorted, args.scatter, epilogue, group, tid);
}
// scatter_sort: [1, 1, 1] groups of 512 threads
// scatter_zero_1: [3125, 1, 1] groups of 256 threads
// scatter_sorted_2: [1024, 1, 1] groups of 256 threads

inline float op_add(float a, float b) { return tl_add(a, b); }
struct Args {
    int n;
    int v0_at;
    int v2_at;
    int o0_at;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void map_add(device const half* b0 [[buffer(0)]],
                    device const float* b1 [[buffer(1)]],
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
    float p2[8];
    tl_load<8>(b1 + (args.v2_at + x0), count, p2);
    float o0[8];
    for (uint u = 0; u < 8; ++u) {
        const float v0 = p0[u];
        const float v1 = v0;
        const float v2 = p2[u];
        const float v3 = op_add(v1, v2);
        const float v4 = v3;
        o0[u] = v4;
    }
    tl_store<8>(b2 + (args.o0_at + x0), count, o0);
}
// map_add: [1563, 1, 1] groups of 256 threads

