struct Args {
    long q_at;
    long k_at;
    long v_at;
    TlAttention attention;
};
struct Attended {
    device const half* b0;
    device const half* b1;
    device const half* b2;
    device half* b3;
    constant Args* arguments;
    enum : uint { MASKED = 0 };
    float mask(uint batch, uint head, uint query, uint key) const { return 0.0f; }
    void part(ulong at, float x) const {  }
    void output(ulong at, float x) const { b3[at] = half(x); }
    void sums(ulong at, float x) const {  }
};
[[max_total_threads_per_threadgroup(64)]]
kernel void attention_units(device const half* b0 [[buffer(0)]],
                            device const half* b1 [[buffer(1)]],
                            device const half* b2 [[buffer(2)]],
                            device half* b3 [[buffer(3)]],
                            constant Args& args [[buffer(4)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint tid [[thread_index_in_threadgroup]]) {
    const Attended attended = {b0, b1, b2, b3, &args};
    threadgroup float block[TL_ATTEND_BLOCK(16, 2, 32, 64, false)];
    tl_attend_forward<16, 2, 32, 64, false>(b0 + args.q_at, b1 + args.k_at, b2 + args.v_at, args.attention, block, attended, group, tid);
}
// attention_units: [4, 1, 1] groups of 64 threads

