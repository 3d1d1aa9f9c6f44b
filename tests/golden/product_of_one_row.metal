struct Args {
    TlMatmul product;
    int n;
    int o0_at;
    int a_at;
    int b_at;
};
struct Epilogue {
    device const float* b0;
    device const float* b1;
    device float* b2;
    constant Args* arguments;
    uint batch;
    void operator()(uint row, uint column, float sum) const {
        constant Args& args = *arguments;
        const int x0 = (int(row) * args.n + int(column));
        const float v0 = sum;
        b2[args.o0_at + x0] = float(v0);
    }
};
[[max_total_threads_per_threadgroup(256)]]
kernel void matmul(device const float* b0 [[buffer(0)]],
                   device const float* b1 [[buffer(1)]],
                   device float* b2 [[buffer(2)]],
                   constant Args& args [[buffer(3)]],
                   uint3 group [[threadgroup_position_in_grid]],
                   uint tid [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_GEMV_BLOCK(1)];
    const uint3 tile = group;
    const Epilogue epilogue = {b0, b1, b2, &args, tile.z};
    tl_gemv_lines<float, 1, true, true>(b0 + (args.a_at), b1 + (args.b_at), args.product, block, epilogue, tile, tid);
}
// matmul: [4, 1, 1] groups of 256 threads

