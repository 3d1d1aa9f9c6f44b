inline float op_add(float a, float b) { return tl_add(a, b); }
inline float op_gelu_narrow(float x) { return x * tl_sigmoid_narrow((x * x * 0.044715f + 1.0f) * x * 1.5957691f); }
struct Args {
    TlMatmul product;
    int v1_at;
    int o0_at;
    int o0_i0;
    int a_at;
    int b_at;
};
struct Epilogue {
    device const half* b0;
    device const half* b1;
    device const half* b2;
    device half* b3;
    constant Args* arguments;
    uint batch;
    void operator()(uint row, uint column, float sum) const {
        constant Args& args = *arguments;
        const int x0 = int(row);
        const int x1 = int(column);
        const float v0 = sum;
        const float v1 = float(b2[args.v1_at + x1]);
        const float v2 = op_add(v0, v1);
        const float v3 = op_gelu_narrow(v2);
        b3[args.o0_at + x0 * args.o0_i0 + x1] = half(v3);
    }
};
[[max_total_threads_per_threadgroup(128)]]
kernel void matmul_add_gelu(device const half* b0 [[buffer(0)]],
                            device const half* b1 [[buffer(1)]],
                            device const half* b2 [[buffer(2)]],
                            device half* b3 [[buffer(3)]],
                            constant Args& args [[buffer(4)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint tid [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    const uint3 tile = group;
    const Epilogue epilogue = {b0, b1, b2, b3, &args, tile.z};
    tl_matmul_units<half, TL_DEPTH_CONTIGUOUS, TL_DEPTH_CONTIGUOUS, 64, 64, 32, 2, 2, 1>(b0 + (args.a_at), b1 + (args.b_at), args.product, block, epilogue, tile, tid);
}
// matmul_add_gelu: [2, 8, 1] groups of 128 threads

