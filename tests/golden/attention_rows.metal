struct Args {
    long q_at;
    long k_at;
    long v_at;
    TlAttention attention;
};
struct Attended {
    device const float* b0;
    device const float* b1;
    device const float* b2;
    device float* b3;
    constant Args* arguments;
    enum : uint { MASKED = 0 };
    float mask(uint batch, uint head, uint query, uint key) const { return 0.0f; }
    void part(ulong at, float x) const {  }
    void output(ulong at, float x) const { b3[at] = float(x); }
    void sums(ulong at, float x) const {  }
};
[[max_total_threads_per_threadgroup(256)]]
kernel void attention_forward(device const float* b0 [[buffer(0)]],
                              device const float* b1 [[buffer(1)]],
                              device const float* b2 [[buffer(2)]],
                              device float* b3 [[buffer(3)]],
                              constant Args& args [[buffer(4)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint tid [[thread_index_in_threadgroup]]) {
    const Attended attended = {b0, b1, b2, b3, &args};
    threadgroup float block[TL_ATTENTION_BLOCK(2)];
    tl_attention_forward<2>(b0 + args.q_at, b1 + args.k_at, b2 + args.v_at, args.attention, block, attended, group, tid);
}
// attention_forward: [128, 1, 1] groups of 256 threads

