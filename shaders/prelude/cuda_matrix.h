// Matrices for the tensor cores, behind cuda.h: simdgroup_matrix, and what shaders/matmul.metal has in terms of it in
// terms of the larger matrices of mma.sync. For compute capability 8.0 and up. Products of f32 matrices are true f32.

#define TL_CUDA 1

inline uint tl_cuda_lane() { return threadIdx.x & 31; }

// A pair of narrow floats as the register that it is.
template <class T> inline uint tl_pair(T low, T high) { return uint(low.bits) | uint(high.bits) << 16; }

// ---- simdgroup_matrix (matrix.h): the neighbours that a lane holds are those that mma.sync gives it.

template <class T>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& to, const T* from, ulong row_elements = 8, ulong2 = ulong2(0, 0),
                           bool transpose = false) {
    uint row = tl_cuda_lane() / 4, column = tl_cuda_lane() % 4 * 2, pitch = uint(row_elements);
    for (uint i = 0; i < 2; i++) to.elements[i] = from[transpose ? (column + i) * pitch + row : row * pitch + column + i];
}

template <class T>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& from, T* to, ulong row_elements = 8, ulong2 = ulong2(0, 0),
                            bool transpose = false) {
    uint row = tl_cuda_lane() / 4, column = tl_cuda_lane() % 4 * 2, pitch = uint(row_elements);
    for (uint i = 0; i < 2; i++) to[transpose ? (column + i) * pitch + row : row * pitch + column + i] = from.elements[i];
}

// One eighth of a matrix by rows: half of an m16n8k8 product, whose other rows are zero.
#define TL_MULTIPLY_8(T, NAME)                                                                                         \
    inline void simdgroup_multiply_accumulate(simdgroup_float8x8& out, const simdgroup_matrix<T, 8, 8>& a,             \
                                              const simdgroup_matrix<T, 8, 8>& b, const simdgroup_float8x8& c) {       \
        uint left = tl_pair(a.elements[0], a.elements[1]), right;                                                      \
        asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;"                                                   \
                     : "=r"(right)                                                                                     \
                     : "r"(tl_pair(b.elements[0], b.elements[1])));                                                    \
        asm volatile("{.reg .f32 low, high; mma.sync.aligned.m16n8k8.row.col.f32." NAME "." NAME ".f32 "               \
                     "{%0, %1, low, high}, {%2, %3}, {%4}, {%5, %6, %7, %7};}"                                         \
                     : "=f"(out.elements[0]), "=f"(out.elements[1])                                                    \
                     : "r"(left), "r"(0u), "r"(right), "f"(c.elements[0]), "f"(c.elements[1]), "f"(0.0f));             \
    }
TL_MULTIPLY_8(half, "f16")
TL_MULTIPLY_8(bfloat, "bf16")
#undef TL_MULTIPLY_8

inline void simdgroup_multiply_accumulate(simdgroup_float8x8& out, const simdgroup_float8x8& a, const simdgroup_float8x8& b,
                                          const simdgroup_float8x8& c) {
    uint row = tl_cuda_lane() / 4, column = tl_cuda_lane() % 4;
    simdgroup_float8x8 sums = c;
    for (uint k = 0; k < 8; k++) {
        float left = __shfl_sync(0xffffffffu, a.elements[k % 2], row * 4 + k / 2);
        for (uint i = 0; i < 2; i++)
            sums.elements[i] = fma(left, __shfl_sync(0xffffffffu, b.elements[i], k * 4 + column), sums.elements[i]);
    }
    out = sums;
}

// ---- What shaders/matmul.metal calls units.

// The sums of a warp, in m16n8 matrices: a lane holds two neighbours of row lane / 4, and of the row 8 further on.
template <uint M, uint N> struct TlUnits {
    static_assert(M % 16 == 0 && N % 16 == 0, "m16n8, and two of them at a time");
    float sums[M / 16][N / 8][4];
};

template <uint M, uint N> inline void tl_units_clear(TlUnits<M, N>& units) {
    for (uint i = 0; i < M / 16; i++)
        for (uint j = 0; j < N / 8; j++)
            for (uint e = 0; e < 4; e++) units.sums[i][j][e] = 0.0f;
}

inline uint tl_shared(const void* at) { return uint(__cvta_generic_to_shared(at)); }

// Four 8 by 8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8, 16 bytes.
template <bool TRANSPOSE> inline void tl_load_matrices(uint* to, const void* row) {
    if (TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(tl_shared(row))
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(tl_shared(row))
                     : "memory");
}

#define TL_MULTIPLY_16(T, NAME)                                                                                        \
    inline void tl_multiply_16(float* sums, const uint* a, const uint* b, const T*) {                                  \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, "                  \
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                   \
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
    }
TL_MULTIPLY_16(half, "f16")
TL_MULTIPLY_16(bfloat, "bf16")
#undef TL_MULTIPLY_16

// Adds the product of two tiles. A tile is lines by depth with rows of PITCH elements, or depth by lines.
template <uint DEPTH, bool A_LINES, uint A_PITCH, bool B_LINES, uint B_PITCH, typename T, uint M, uint N>
inline void tl_units_step(TlUnits<M, N>& units, const T* a, const T* b) {
    // The row that this lane names, of the first or the second 8 along each dimension.
    uint near = tl_cuda_lane() % 16, far = tl_cuda_lane() / 16 * 8;
    uint inner = tl_cuda_lane() % 8 + far, middle = tl_cuda_lane() / 8 % 2 * 8;
    #pragma unroll
    for (uint k = 0; k < DEPTH; k += 16) {
        uint left[M / 16][4], right[N / 16][4];
        #pragma unroll
        for (uint i = 0; i < M / 16; i++)
            tl_load_matrices<A_LINES>(left[i], A_LINES ? a + (k + inner) * A_PITCH + i * 16 + middle
                                                       : a + (i * 16 + near) * A_PITCH + k + far);
        #pragma unroll
        for (uint j = 0; j < N / 16; j++)
            tl_load_matrices<B_LINES>(right[j], B_LINES ? b + (k + near) * B_PITCH + j * 16 + far
                                                        : b + (j * 16 + inner) * B_PITCH + k + middle);
        #pragma unroll
        for (uint i = 0; i < M / 16; i++)
            #pragma unroll
            for (uint j = 0; j < N / 8; j++) tl_multiply_16(units.sums[i][j], left[i], right[j / 2] + j % 2 * 2, a);
    }
}

template <uint M, uint N, typename Epilogue>
inline void tl_units_finish(const TlUnits<M, N>& units, float*, const Epilogue& epilogue, uint row, uint column, uint rows,
                            uint columns, uint lane) {
    #pragma unroll
    for (uint i = 0; i < M / 16; i++)
        #pragma unroll
        for (uint j = 0; j < N / 8; j++)
            #pragma unroll
            for (uint e = 0; e < 4; e++) {
                uint r = row + i * 16 + lane / 4 + e / 2 * 8, c = column + j * 8 + lane % 4 * 2 + e % 2;
                if (r < rows && c < columns) epilogue(r, c, units.sums[i][j][e]);
            }
}

// Copies 16 bytes, some time before tl_copies_arrive; zeros if not `inside`.
template <typename T> inline void tl_copy_16(T* to, const T* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(tl_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
                 : "memory");
}

inline void tl_copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all copies but those before the last PENDING calls of tl_copies_end.
template <uint PENDING> inline void tl_copies_arrive() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
