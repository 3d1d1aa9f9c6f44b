// Kernels as the generator writes them, which use every body of shaders/gradients.metal.

struct Args {
    TlScatter scatter;
    long source_outer, out_outer;
};

template <typename T, typename Acc> struct StoreRow {
    device T* out;
    constant Args* args;
    void operator()(uint row, uint column, Acc sum) const { out[long(row) * args->scatter.columns + column] = T(sum); }
};

kernel void scatter_half_long_4(device const half* source [[buffer(0)]], device const long* by [[buffer(1)]], device half* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    StoreRow<half, float> epilogue = {out + long(group.z) * args.out_outer, &args};
    source += long(group.z) * args.source_outer;
    tl_scatter_rows<half, float, long, 4>(source, by, args.scatter, matches, epilogue, group, index);
}

kernel void scatter_bfloat_int_1(device const bfloat* source [[buffer(0)]], device const int* by [[buffer(1)]], device bfloat* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    StoreRow<bfloat, float> epilogue = {out + long(group.z) * args.out_outer, &args};
    source += long(group.z) * args.source_outer;
    tl_scatter_rows<bfloat, float, int, 1>(source, by, args.scatter, matches, epilogue, group, index);
}

kernel void scatter_float_uint_2(device const float* source [[buffer(0)]], device const uint* by [[buffer(1)]], device float* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    StoreRow<float, float> epilogue = {out + long(group.z) * args.out_outer, &args};
    source += long(group.z) * args.source_outer;
    tl_scatter_rows<float, float, uint, 2>(source, by, args.scatter, matches, epilogue, group, index);
}

kernel void scatter_int_uchar_1(device const int* source [[buffer(0)]], device const uchar* by [[buffer(1)]], device int* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    StoreRow<int, int> epilogue = {out + long(group.z) * args.out_outer, &args};
    source += long(group.z) * args.source_outer;
    tl_scatter_rows<int, int, uchar, 1>(source, by, args.scatter, matches, epilogue, group, index);
}

kernel void scatter_uint_long_1(device const uint* source [[buffer(0)]], device const long* by [[buffer(1)]], device uint* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    StoreRow<uint, uint> epilogue = {out + long(group.z) * args.out_outer, &args};
    source += long(group.z) * args.source_outer;
    tl_scatter_rows<uint, uint, long, 1>(source, by, args.scatter, matches, epilogue, group, index);
}

kernel void scatter_long_long_2(device const long* source [[buffer(0)]], device const long* by [[buffer(1)]], device long* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    StoreRow<long, long> epilogue = {out + long(group.z) * args.out_outer, &args};
    source += long(group.z) * args.source_outer;
    tl_scatter_rows<long, long, long, 2>(source, by, args.scatter, matches, epilogue, group, index);
}

kernel void scatter_uchar_int_1(device const uchar* source [[buffer(0)]], device const int* by [[buffer(1)]], device uchar* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint matches[TL_SCATTER_WORDS];
    StoreRow<uchar, uchar> epilogue = {out + long(group.z) * args.out_outer, &args};
    source += long(group.z) * args.source_outer;
    tl_scatter_rows<uchar, uchar, int, 1>(source, by, args.scatter, matches, epilogue, group, index);
}

kernel void scatter_sort_long(device const long* by [[buffer(0)]], device uint* sorted [[buffer(1)]], constant Args& args [[buffer(2)]],
                    uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint keys[1024];
    tl_scatter_sort<1024, 256, long>(by, args.scatter, 50000u, sorted, keys, group, index);
}

kernel void scatter_sorted_half_4(device const half* source [[buffer(0)]], device const uint* sorted [[buffer(1)]], device half* out [[buffer(2)]],
                    constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]]) {
    StoreRow<half, float> epilogue = {out, &args};
    tl_scatter_sorted<1024, half, float, 4>(source, sorted, args.scatter, epilogue, group, index);
}
