// Kernels as the generator writes them, which use every body of shaders/matmul.metal.

struct Args {
    TlMatmul product;
    long a_batch, b_batch, out_batch;
    float scale;
};

template <typename T> struct Store {
    device T* out;
    constant Args* args;
    void operator()(uint row, uint column, float sum) const { out[long(row) * args->product.n + column] = T(sum * args->scale); }
};
template <typename T> struct StoreInteger {
    device T* out;
    constant Args* args;
    void operator()(uint row, uint column, T sum) const { out[long(row) * args->product.n + column] = sum; }
};

kernel void units_half_depth_depth(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_DEPTH_CONTIGUOUS, TL_DEPTH_CONTIGUOUS, 64, 64, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_depth_lines(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_DEPTH_CONTIGUOUS, TL_LINES_CONTIGUOUS, 64, 64, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_lines_depth(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_LINES_CONTIGUOUS, TL_DEPTH_CONTIGUOUS, 64, 64, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_lines_lines(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_LINES_CONTIGUOUS, TL_LINES_CONTIGUOUS, 64, 64, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_strided_strided(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_STRIDED, TL_STRIDED, 64, 64, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_bfloat_depth_lines(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<bfloat, TL_DEPTH_CONTIGUOUS, TL_LINES_CONTIGUOUS, 64, 64, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_bfloat_strided_depth(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 32, 1)];
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<bfloat, TL_STRIDED, TL_DEPTH_CONTIGUOUS, 64, 64, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_large(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(128, 128, 32, 2)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_DEPTH_CONTIGUOUS, TL_LINES_CONTIGUOUS, 128, 128, 32, 2, 4, 2>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_bfloat_large(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(128, 128, 32, 2)];
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<bfloat, TL_DEPTH_CONTIGUOUS, TL_DEPTH_CONTIGUOUS, 128, 128, 32, 2, 4, 2>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_wide(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 128, 32, 3)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_LINES_CONTIGUOUS, TL_DEPTH_CONTIGUOUS, 64, 128, 32, 2, 2, 3>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_bfloat_small(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(32, 32, 32, 1)];
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<bfloat, TL_DEPTH_CONTIGUOUS, TL_LINES_CONTIGUOUS, 32, 32, 32, 1, 1, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_float_64(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_SIMT_BLOCK(64, 16)];
    Store<float> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<float, float, 64, 16>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_float_128(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_SIMT_BLOCK(128, 8)];
    Store<float> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<float, float, 128, 8>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_half_64(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup half block[TL_SIMT_BLOCK(64, 16)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<half, float, 64, 16>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_bfloat_64(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup bfloat block[TL_SIMT_BLOCK(64, 16)];
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<bfloat, float, 64, 16>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_int_64(device const int* a [[buffer(0)]], device const int* b [[buffer(1)]], device int* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup int block[TL_SIMT_BLOCK(64, 16)];
    StoreInteger<int> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<int, int, 64, 16>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_uint_64(device const uint* a [[buffer(0)]], device const uint* b [[buffer(1)]], device uint* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup uint block[TL_SIMT_BLOCK(64, 16)];
    StoreInteger<uint> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<uint, uint, 64, 16>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_long_64(device const long* a [[buffer(0)]], device const long* b [[buffer(1)]], device long* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup long block[TL_SIMT_BLOCK(64, 8)];
    StoreInteger<long> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<long, long, 64, 8>(a, b, args.product, block, epilogue, group, index);
}

kernel void simt_uchar_64(device const uchar* a [[buffer(0)]], device const uchar* b [[buffer(1)]], device uchar* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup uchar block[TL_SIMT_BLOCK(64, 16)];
    StoreInteger<uchar> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_simt<uchar, uchar, 64, 16>(a, b, args.product, block, epilogue, group, index);
}

kernel void gemv_depth_half_1_rows(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_depth<half, 1, true, 4, true>(a, b, args.product, epilogue, group, index);
}

kernel void gemv_depth_half_4_columns(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_depth<half, 4, false, 4, true>(a, b, args.product, epilogue, group, index);
}

kernel void gemv_depth_bfloat_3_rows(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_depth<bfloat, 3, true, 4, true>(a, b, args.product, epilogue, group, index);
}

kernel void gemv_depth_float_2_rows(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    Store<float> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_depth<float, 2, true, 4, true>(a, b, args.product, epilogue, group, index);
}

kernel void gemv_depth_half_2_rows(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_depth<half, 2, true, 1, false>(a, b, args.product, epilogue, group, index);
}

kernel void gemv_depth_float_1_columns(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    Store<float> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_depth<float, 1, false, 4, false>(a, b, args.product, epilogue, group, index);
}

kernel void gemv_lines_half_1_rows(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_GEMV_BLOCK(1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_lines<half, 1, true, true>(a, b, args.product, block, epilogue, group, index);
}

kernel void gemv_lines_half_4_columns(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_GEMV_BLOCK(4)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_lines<half, 4, false, true>(a, b, args.product, block, epilogue, group, index);
}

kernel void gemv_lines_bfloat_2_rows(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_GEMV_BLOCK(2)];
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_lines<bfloat, 2, true, true>(a, b, args.product, block, epilogue, group, index);
}

kernel void gemv_lines_float_3_rows(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_GEMV_BLOCK(3)];
    Store<float> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_lines<float, 3, true, true>(a, b, args.product, block, epilogue, group, index);
}

kernel void gemv_lines_half_3_rows(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_GEMV_BLOCK(3)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_lines<half, 3, true, false>(a, b, args.product, block, epilogue, group, index);
}

kernel void gemv_lines_float_1_columns(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_GEMV_BLOCK(1)];
    Store<float> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_gemv_lines<float, 1, false, false>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_shallow(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 64, 16, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_LINES_CONTIGUOUS, TL_LINES_CONTIGUOUS, 64, 64, 16, 1, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_bfloat_narrow(device const bfloat* a [[buffer(0)]], device const bfloat* b [[buffer(1)]], device bfloat* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(64, 32, 32, 1)];
    Store<bfloat> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<bfloat, TL_DEPTH_CONTIGUOUS, TL_DEPTH_CONTIGUOUS, 64, 32, 32, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_48(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(48, 48, 24, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_LINES_CONTIGUOUS, TL_STRIDED, 48, 48, 24, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void units_half_32(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    threadgroup float block[TL_UNITS_BLOCK(32, 32, 16, 1)];
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_units<half, TL_DEPTH_CONTIGUOUS, TL_LINES_CONTIGUOUS, 32, 32, 16, 2, 2, 1>(a, b, args.product, block, epilogue, group, index);
}

kernel void slow_half(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device half* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    Store<half> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_slow<half, float>(a, b, args.product, epilogue, group, index);
}

kernel void slow_long(device const long* a [[buffer(0)]], device const long* b [[buffer(1)]], device long* out [[buffer(2)]],
                   constant Args& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]]) {
    StoreInteger<long> epilogue = {out + long(group.z) * args.out_batch, &args};
    a += long(group.z) * args.a_batch;
    b += long(group.z) * args.b_batch;
    tl_matmul_slow<long, long>(a, b, args.product, epilogue, group, index);
}
