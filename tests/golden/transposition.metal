inline float op_mul(float a, float b) { return tl_mul(a, b); }
struct Args {
    int rows;
    int n;
    int v0_at;
    int v0_i1;
    float s1;
    int o0_at;
    int o0_i0;
};
[[max_total_threads_per_threadgroup(256)]]
kernel void tiles_mul(device const half* b0 [[buffer(0)]],
                      device half* b1 [[buffer(1)]],
                      constant Args& args [[buffer(2)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint tid [[thread_index_in_threadgroup]]) {
    threadgroup half tile0[4224];
    const int row0 = int(group.y) * 64, column0 = int(group.x) * 64;
    for (uint k = tid; k < 64 * 64; k += 256) {
        const uint i = k % 64, j = k / 64;
        const int row = row0 + int(i), column = column0 + int(j);
        if (row < args.rows && column < args.n) {
            tile0[i * 66 + j] = b0[args.v0_at + row + column * args.v0_i1];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = tid; k < 64 * 64 / 8; k += 256) {
        const uint i = k / (64 / 8), j = k % (64 / 8) * 8;
        const int row = row0 + int(i), column = column0 + int(j);
        if (row >= args.rows || column >= args.n) continue;
        const uint count = min(int(8), args.n - column);
        float p0[8];
        for (uint u = 0; u < 8; ++u) p0[u] = u < count ? float((tile0 + i * 66 + j)[u]) : float(0);
        const float v1 = args.s1;
        float o0[8];
        for (uint u = 0; u < 8; ++u) {
            const float v0 = p0[u];
            const float v2 = op_mul(v0, v1);
            o0[u] = v2;
        }
        tl_store_strided<8>(b1 + (args.o0_at + row * args.o0_i0 + column), 1, count, o0);
    }
}
// tiles_mul: [2, 4, 1] groups of 256 threads

