// Products of matrices: bodies that generated kernels call with an epilogue, which is told each element's sum.
//
// All of them compute sum over k of a[row, k] * b[k, column], with strides of any kind, also 0 and negative ones.
// `a` and `b` point at the matrices of this group's batch; `shape` is a member of the kernel's Args. For each element
// of the result, epilogue(row, column, sum) is called once, by one thread, also when k is 0:
//
//     struct Epilogue {
//         device half* out;
//         constant Args* args;
//         void operator()(uint row, uint column, float sum) const { ... }
//     };
//
// A group's threads count along one dimension. Every body is deterministic: no atomics, sums in a fixed order.
//
// | body              | for                                | threads           | grid (x, y)                          | threadgroup memory |
// | tl_matmul_units   | half, bfloat by matrix units       | TL_UNITS_THREADS  | m / ROWS, n / COLUMNS                | float[TL_UNITS_BLOCK] |
// | tl_matmul_simt    | any type                           | 256               | m / TILE, n / TILE                   | T[TL_SIMT_BLOCK] |
// | tl_gemv_depth     | floats, at most 4 rows or columns, | 128               | lines / (4 * LINES)                  | none |
// |                   | the other side any but as below    |                   |                                      | |
// | tl_gemv_lines     | the same, the other side           | 256               | lines / TL_GEMV_LINES                | float[TL_GEMV_BLOCK(FEW)] |
// |                   | contiguous across k                |                   |                                      | |
// | tl_matmul_slow    | any type; checks the others        | 256               | m / 16, n / 16                       | none |
//
// Divisions round up; z is for batches, which the bodies know nothing of. Examples: shaders/lint/matmul.metal.
//
// Seen from k, both operands are alike: `lines` (rows of a, columns of b) by `depth` (k).

struct TlMatmul {
    long a_row, a_col, b_row, b_col; // strides, in elements
    uint m, n, k, reserved;
};

// How an operand lies in memory. The first two promise loads of 16 bytes: the operand's first element at a multiple
// of 16 bytes for every batch, stride 1 along the one, and a multiple of 16 bytes along the other. (Extents may be
// ragged.)
enum TlLayout {
    TL_DEPTH_CONTIGUOUS, // a_col or b_row is 1
    TL_LINES_CONTIGUOUS, // a_row or b_col is 1
    TL_STRIDED,
};

// ---- Matrix units

// Rows of tiles are padded by 8 elements, which spreads columns over the banks.
#define TL_UNITS_PITCH(LAYOUT, LINES, DEPTH) ((LAYOUT) == TL_LINES_CONTIGUOUS ? (LINES) + 8 : (DEPTH) + 8)
#define TL_UNITS_THREADS(SIDE_M, SIDE_N) (32 * (SIDE_M) * (SIDE_N))
#define TL_UNITS_BLOCK(ROWS, COLUMNS, DEPTH, STAGES) (((DEPTH) + 8) / 2 * ((ROWS) + (COLUMNS)) * (STAGES))

// shaders/prelude/cuda_matrix.h has this part in terms of mma.sync, whose matrices are larger.
#ifndef TL_CUDA

// The sums of a simdgroup: M by N of them.
template <uint M, uint N> struct TlUnits {
    simdgroup_float8x8 part[M / 8][N / 8];
};

template <uint M, uint N> void tl_units_clear(thread TlUnits<M, N>& sums) {
    for (uint i = 0; i < M / 8; i++)
        for (uint j = 0; j < N / 8; j++) sums.part[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

// Adds the product of two tiles. A tile is lines by depth with rows of PITCH elements, or depth by lines.
template <uint DEPTH, bool A_LINES, uint A_PITCH, bool B_LINES, uint B_PITCH, typename T, uint M, uint N>
void tl_units_step(thread TlUnits<M, N>& sums, threadgroup const T* a, threadgroup const T* b) {
    for (uint k = 0; k < DEPTH; k += 8) {
        simdgroup_matrix<T, 8, 8> left[M / 8], right[N / 8];
        for (uint i = 0; i < M / 8; i++)
            simdgroup_load(left[i], a + (A_LINES ? k * A_PITCH + i * 8 : i * 8 * A_PITCH + k), A_PITCH, ulong2(0, 0), A_LINES);
        for (uint j = 0; j < N / 8; j++)
            simdgroup_load(right[j], b + (B_LINES ? k * B_PITCH + j * 8 : j * 8 * B_PITCH + k), B_PITCH, ulong2(0, 0), !B_LINES);
        for (uint i = 0; i < M / 8; i++)
            for (uint j = 0; j < N / 8; j++)
                simdgroup_multiply_accumulate(sums.part[i][j], left[i], right[j], sums.part[i][j]);
    }
}

// Hands the sums to the epilogue by way of `strip`, 8 rows of N + 4 of this simdgroup's own, as Apple does not say
// which thread holds which.
template <uint M, uint N, typename Epilogue>
void tl_units_finish(thread const TlUnits<M, N>& sums, threadgroup float* strip, thread const Epilogue& epilogue, uint row,
                     uint column, uint rows, uint columns, uint lane) {
    for (uint i = 0; i < M / 8; i++) {
        for (uint j = 0; j < N / 8; j++) simdgroup_store(sums.part[i][j], strip + j * 8, N + 4);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint at = lane; at < 8 * N; at += 32) {
            uint r = row + i * 8 + at / N, c = column + at % N;
            if (r < rows && c < columns) epilogue(r, c, strip[at / N * (N + 4) + at % N]);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Copies 16 bytes, some time before tl_copies_arrive; zeros if not `inside`.
template <typename T> void tl_copy_16(threadgroup T* to, device const T* from, bool inside) {
    *(threadgroup uint4*)to = inside ? *(device const uint4*)from : uint4(0, 0, 0, 0);
}

inline void tl_copies_end() {}

// Waits for all copies but those before the last PENDING calls of tl_copies_end.
template <uint PENDING> void tl_copies_arrive() {}

#endif

// Loads a tile, with zeros for what lies outside: `from` is its first element, and `lines` and `depth` are what is
// left from there on.
template <TlLayout LAYOUT, uint LINES, uint DEPTH, uint THREADS, typename T>
void tl_units_load(threadgroup T* tile, device const T* from, long line_stride, long depth_stride, uint lines, uint depth,
                   uint index) {
    const uint PITCH = TL_UNITS_PITCH(LAYOUT, LINES, DEPTH);
    if (LAYOUT == TL_STRIDED) {
        // Neighbouring threads take neighbours in memory.
        bool by_line = line_stride == 1;
        for (uint at = index; at < LINES * DEPTH; at += THREADS) {
            uint line = by_line ? at % LINES : at / DEPTH, d = by_line ? at / LINES : at % DEPTH;
            bool inside = line < lines && d < depth;
            tile[line * PITCH + d] = inside ? from[long(line) * line_stride + long(d) * depth_stride] : T(0.0f);
        }
        return;
    }
    const bool BY_LINE = LAYOUT == TL_LINES_CONTIGUOUS;
    const uint CHUNKS = (BY_LINE ? LINES : DEPTH) / 8; // of a row of the tile
    uint rows = BY_LINE ? depth : lines, columns = BY_LINE ? lines : depth;
    long stride = BY_LINE ? depth_stride : line_stride;
    for (uint at = index; at < LINES * DEPTH / 8; at += THREADS) {
        uint row = at / CHUNKS, column = at % CHUNKS * 8;
        threadgroup T* to = tile + row * PITCH + column;
        bool inside = row < rows && column < columns;
        device const T* chunk = inside ? from + long(row) * stride + column : from;
        if (!inside || column + 8 <= columns) {
            tl_copy_16(to, chunk, inside);
        } else {
            for (uint i = 0; i < 8; i++) to[i] = column + i < columns ? chunk[i] : T(0.0f);
        }
    }
}

// The product of half or bfloat matrices with sums in f32, ROWS by COLUMNS elements of the result a group.
//
// SIDE_M by SIDE_N simdgroups share the tile, DEPTH of k at a time: a multiple of 8, on CUDA of 16, and no more than
// ROWS or COLUMNS. STAGES tiles of each operand are in memory at a time: more than one only helps where copies run on
// their own (CUDA). src/codegen/choice.rs has the sizes.
template <typename T, TlLayout A, TlLayout B, uint ROWS, uint COLUMNS, uint DEPTH, uint SIDE_M, uint SIDE_N, uint STAGES,
          typename Epilogue>
void tl_matmul_units(device const T* a, device const T* b, constant TlMatmul& shape, threadgroup float* block,
                     thread const Epilogue& epilogue, uint3 group, uint index) {
    const uint THREADS = TL_UNITS_THREADS(SIDE_M, SIDE_N), M = ROWS / SIDE_M, N = COLUMNS / SIDE_N;
    const uint A_PITCH = TL_UNITS_PITCH(A, ROWS, DEPTH), B_PITCH = TL_UNITS_PITCH(B, COLUMNS, DEPTH);
    const uint A_TILE = (DEPTH + 8) * ROWS, STAGE = A_TILE + (DEPTH + 8) * COLUMNS;
    const bool A_LINES = A == TL_LINES_CONTIGUOUS, B_LINES = B == TL_LINES_CONTIGUOUS;
    threadgroup T* tiles = (threadgroup T*)block;
    uint row = group.x * ROWS, column = group.y * COLUMNS;
    uint row_in = index / 32 / SIDE_N * M, column_in = index / 32 % SIDE_N * N;
    device const T* a_line = a + long(row) * shape.a_row;
    device const T* b_line = b + long(column) * shape.b_col;
    TlUnits<M, N> sums;
    tl_units_clear(sums);
    uint steps = (shape.k + DEPTH - 1) / DEPTH;
    // Step `at` computes; the tiles of step `at` + STAGES - 1 are on their way.
    for (uint at = 0; at < steps + STAGES - 1; at++) {
        if (STAGES == 1 || at >= STAGES - 1) {
            tl_copies_arrive<(STAGES > 1 ? STAGES - 2 : 0)>();
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        if (at < steps) {
            uint k = at * DEPTH;
            threadgroup T* tile = tiles + at % STAGES * STAGE;
            tl_units_load<A, ROWS, DEPTH, THREADS>(tile, a_line + long(k) * shape.a_col, shape.a_row, shape.a_col, shape.m - row,
                                            shape.k - k, index);
            tl_units_load<B, COLUMNS, DEPTH, THREADS>(tile + A_TILE, b_line + long(k) * shape.b_row, shape.b_col, shape.b_row,
                                               shape.n - column, shape.k - k, index);
        }
        tl_copies_end();
        if (STAGES == 1) {
            tl_copies_arrive<0>();
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        if (at >= STAGES - 1) {
            threadgroup const T* tile = tiles + (at + 1 - STAGES) % STAGES * STAGE;
            tl_units_step<DEPTH, A_LINES, A_PITCH, B_LINES, B_PITCH>(
                sums, tile + row_in * (A_LINES ? 1 : A_PITCH), tile + A_TILE + column_in * (B_LINES ? 1 : B_PITCH));
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float* strip = block + index / 32 * 8 * (N + 4);
    tl_units_finish(sums, strip, epilogue, row + row_in, column + column_in, shape.m, shape.n, index % 32);
}

// ---- Arithmetic units

inline float tl_multiply_add(float sum, float a, float b) { return fma(a, b, sum); }
inline int tl_multiply_add(int sum, int a, int b) { return tl_add(sum, tl_mul(a, b)); }
inline uint tl_multiply_add(uint sum, uint a, uint b) { return tl_add(sum, tl_mul(a, b)); }
inline long tl_multiply_add(long sum, long a, long b) { return tl_add(sum, tl_mul(a, b)); }
inline uchar tl_multiply_add(uchar sum, uchar a, uchar b) { return tl_add(sum, tl_mul(a, b)); }

// The elements of an operand's tiles that a thread loads: EACH = TILE * DEPTH / 256 of each.
struct TlWalk {
    uint line, depth, line_step, depth_step; // the first, and from one to the next
    long first, step, advance;               // offsets: of the first, from one to the next, from tile to tile
};

template <uint TILE, uint DEPTH> TlWalk tl_walk(long line_stride, long depth_stride, uint index) {
    TlWalk walk;
    // Neighbouring threads take neighbours in memory.
    bool by_line = line_stride == 1;
    walk.line = by_line ? index % TILE : index / DEPTH;
    walk.depth = by_line ? index / TILE : index % DEPTH;
    walk.line_step = by_line ? 0 : 256 / DEPTH;
    walk.depth_step = by_line ? 256 / TILE : 0;
    walk.first = long(walk.line) * line_stride + long(walk.depth) * depth_stride;
    walk.step = long(walk.line_step) * line_stride + long(walk.depth_step) * depth_stride;
    walk.advance = long(DEPTH) * depth_stride;
    return walk;
}

// `lines` and `depth` are what is left of the operand from the tile's first element on.
template <uint EACH, typename T>
void tl_walk_load(thread T* values, device const T* from, thread const TlWalk& walk, uint lines, uint depth) {
    for (uint i = 0; i < EACH; i++) {
        bool inside = walk.line + i * walk.line_step < lines && walk.depth + i * walk.depth_step < depth;
        values[i] = inside ? from[walk.first + long(i) * walk.step] : T(0.0f);
    }
}

template <uint EACH, uint PITCH, typename T>
void tl_walk_store(threadgroup T* tile, thread const T* values, thread const TlWalk& walk) {
    for (uint i = 0; i < EACH; i++)
        tile[(walk.depth + i * walk.depth_step) * PITCH + walk.line + i * walk.line_step] = values[i];
}

template <typename T> void tl_load_4(thread T* to, threadgroup const T* from) {
    for (uint i = 0; i < 4; i++) to[i] = from[i];
}

inline void tl_load_4(thread float* to, threadgroup const float* from) {
    float4 v = *(threadgroup const float4*)from;
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
}

#define TL_SIMT_BLOCK(TILE, DEPTH) (4 * (DEPTH) * ((TILE) + 4))

// The product of matrices of T with sums in Acc (float; or an integer type, in which they wrap), TILE by TILE elements
// of the result a group. <T, Acc, 64, 16>; for long <long, long, 64, 8>; for large f32 matrices <float, float, 128, 8>.
template <typename T, typename Acc, uint TILE, uint DEPTH, typename Epilogue>
void tl_matmul_simt(device const T* a, device const T* b, constant TlMatmul& shape, threadgroup T* block,
                    thread const Epilogue& epilogue, uint3 group, uint index) {
    const uint SIDE = TILE / 16, PITCH = TILE + 4, EACH = TILE * DEPTH / 256;
    uint row = group.x * TILE, column = group.y * TILE;
    // A thread computes lines in fours, which are 64 apart.
    uint row_in = index / 16 * 4, column_in = index % 16 * 4;
    device const T* a_tile = a + long(row) * shape.a_row;
    device const T* b_tile = b + long(column) * shape.b_col;
    TlWalk a_walk = tl_walk<TILE, DEPTH>(shape.a_row, shape.a_col, index);
    TlWalk b_walk = tl_walk<TILE, DEPTH>(shape.b_col, shape.b_row, index);
    T a_next[EACH], b_next[EACH];
    Acc sums[SIDE][SIDE];
    for (uint i = 0; i < SIDE; i++)
        for (uint j = 0; j < SIDE; j++) sums[i][j] = Acc(0);
    tl_walk_load<EACH>(a_next, a_tile, a_walk, shape.m - row, shape.k);
    tl_walk_load<EACH>(b_next, b_tile, b_walk, shape.n - column, shape.k);
    // Two tiles of each operand in turn: one barrier a step.
    for (uint k = 0, turn = 0; k < shape.k; k += DEPTH, turn ^= 1) {
        threadgroup T* a_now = block + turn * 2 * DEPTH * PITCH;
        threadgroup T* b_now = a_now + DEPTH * PITCH;
        tl_walk_store<EACH, PITCH>(a_now, a_next, a_walk);
        tl_walk_store<EACH, PITCH>(b_now, b_next, b_walk);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (k + DEPTH < shape.k) {
            a_tile += a_walk.advance;
            b_tile += b_walk.advance;
            tl_walk_load<EACH>(a_next, a_tile, a_walk, shape.m - row, shape.k - k - DEPTH);
            tl_walk_load<EACH>(b_next, b_tile, b_walk, shape.n - column, shape.k - k - DEPTH);
        }
        for (uint d = 0; d < DEPTH; d++) {
            T left[SIDE], right[SIDE];
            for (uint i = 0; i < SIDE; i += 4) {
                tl_load_4(left + i, a_now + d * PITCH + row_in + i * 16);
                tl_load_4(right + i, b_now + d * PITCH + column_in + i * 16);
            }
            for (uint i = 0; i < SIDE; i++)
                for (uint j = 0; j < SIDE; j++) sums[i][j] = tl_multiply_add(sums[i][j], Acc(left[i]), Acc(right[j]));
        }
    }
    for (uint i = 0; i < SIDE; i++)
        for (uint j = 0; j < SIDE; j++) {
            uint r = row + row_in + i / 4 * 64 + i % 4, c = column + column_in + j / 4 * 64 + j % 4;
            if (r < shape.m && c < shape.n) epilogue(r, c, sums[i][j]);
        }
}

// ---- Few rows or few columns

// 16 bytes as floats.
inline void tl_load_16(thread float* to, device const float* from) {
    float4 v = *(device const float4*)from;
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
}
#define TL_LOAD_16(T)                                                  \
    inline void tl_load_16(thread float* to, device const T* from) {   \
        uint4 v = *(device const uint4*)from;                          \
        T##2 a = as_type<T##2>(v.x), b = as_type<T##2>(v.y);           \
        T##2 c = as_type<T##2>(v.z), d = as_type<T##2>(v.w);           \
        to[0] = float(a.x);                                            \
        to[1] = float(a.y);                                            \
        to[2] = float(b.x);                                            \
        to[3] = float(b.y);                                            \
        to[4] = float(c.x);                                            \
        to[5] = float(c.y);                                            \
        to[6] = float(d.x);                                            \
        to[7] = float(d.y);                                            \
    }
TL_LOAD_16(half)
TL_LOAD_16(bfloat)
#undef TL_LOAD_16

// Both operands as lines, the few first: rows of a if FEW_ARE_ROWS, else columns of b.
template <typename T> struct TlLines {
    device const T* few;
    device const T* many;
    long few_line, few_depth, many_line, many_depth;
    uint lines; // of the many
};

template <bool FEW_ARE_ROWS, typename T>
TlLines<T> tl_lines(device const T* a, device const T* b, constant TlMatmul& shape) {
    TlLines<T> lines;
    lines.few = FEW_ARE_ROWS ? a : b;
    lines.many = FEW_ARE_ROWS ? b : a;
    lines.few_line = FEW_ARE_ROWS ? shape.a_row : shape.b_col;
    lines.few_depth = FEW_ARE_ROWS ? shape.a_col : shape.b_row;
    lines.many_line = FEW_ARE_ROWS ? shape.b_col : shape.a_row;
    lines.many_depth = FEW_ARE_ROWS ? shape.b_row : shape.a_col;
    lines.lines = FEW_ARE_ROWS ? shape.n : shape.m;
    return lines;
}

template <bool FEW_ARE_ROWS, typename Epilogue>
void tl_finish_few(thread const Epilogue& epilogue, uint few, uint line, float sum) {
    if (FEW_ARE_ROWS) epilogue(few, line, sum);
    else epilogue(line, few, sum);
}

// Each of a group's 4 simdgroups computes FEW by LINES elements (at most 32; LINES 4 unless that makes too few
// groups), its threads sharing k. FEW is the exact number of rows (FEW_ARE_ROWS) or columns. VECTORS: both operands
// are TL_DEPTH_CONTIGUOUS.
template <typename T, uint FEW, bool FEW_ARE_ROWS, uint LINES, bool VECTORS, typename Epilogue>
void tl_gemv_depth(device const T* a, device const T* b, constant TlMatmul& shape, thread const Epilogue& epilogue, uint3 group,
                   uint index) {
    const uint WIDTH = VECTORS ? 16 / sizeof(T) : 1;
    TlLines<T> at = tl_lines<FEW_ARE_ROWS>(a, b, shape);
    uint lane = index % 32, line = (group.x * 4 + index / 32) * LINES, whole = shape.k / WIDTH * WIDTH;
    device const T* many[LINES];
    float sums[FEW][LINES];
    for (uint l = 0; l < LINES; l++) {
        // Lines that do not exist are computed as the last one and dropped.
        many[l] = at.many + long(min(line + l, at.lines - 1)) * at.many_line;
        for (uint f = 0; f < FEW; f++) sums[f][l] = 0.0f;
    }
    for (uint k = lane * WIDTH; k < whole; k += 32 * WIDTH) {
        float x[FEW][WIDTH], y[WIDTH];
        for (uint f = 0; f < FEW; f++) {
            device const T* from = at.few + long(f) * at.few_line;
            if (VECTORS) tl_load_16(x[f], from + k);
            else x[f][0] = float(from[long(k) * at.few_depth]);
        }
        for (uint l = 0; l < LINES; l++) {
            if (VECTORS) tl_load_16(y, many[l] + k);
            else y[0] = float(many[l][long(k) * at.many_depth]);
            for (uint f = 0; f < FEW; f++)
                for (uint i = 0; i < WIDTH; i++) sums[f][l] = fma(x[f][i], y[i], sums[f][l]);
        }
    }
    if (whole + lane < shape.k) {
        uint k = whole + lane;
        for (uint f = 0; f < FEW; f++)
            for (uint l = 0; l < LINES; l++)
                sums[f][l] = fma(float(at.few[long(f) * at.few_line + k]), float(many[l][k]), sums[f][l]);
    }
    for (uint f = 0; f < FEW; f++)
        for (uint l = 0; l < LINES; l++) {
            float sum = sums[f][l];
            for (uint mask = 16; mask > 0; mask /= 2) sum += simd_shuffle_xor(sum, mask);
            if (lane == f * LINES + l && line + l < at.lines) tl_finish_few<FEW_ARE_ROWS>(epilogue, f, line + l, sum);
        }
}

// Lines of a group.
#define TL_GEMV_LINES 32
#define TL_GEMV_BLOCK(FEW) (8 * TL_GEMV_LINES * (FEW))

// As tl_gemv_depth, for an operand of many lines whose stride from line to line is 1: neighbouring threads take
// neighbouring lines, and k is shared among rows of threads. VECTORS: it is TL_LINES_CONTIGUOUS.
template <typename T, uint FEW, bool FEW_ARE_ROWS, bool VECTORS, typename Epilogue>
void tl_gemv_lines(device const T* a, device const T* b, constant TlMatmul& shape, threadgroup float* block,
                   thread const Epilogue& epilogue, uint3 group, uint index) {
    const uint WIDTH = 16 / sizeof(T), THREADS = TL_GEMV_LINES / WIDTH; // that share the lines
    TlLines<T> at = tl_lines<FEW_ARE_ROWS>(a, b, shape);
    uint first = group.x * TL_GEMV_LINES, line = first + index % THREADS * WIDTH;
    bool whole = VECTORS && line + WIDTH <= at.lines;
    float sums[FEW][WIDTH];
    for (uint f = 0; f < FEW; f++)
        for (uint i = 0; i < WIDTH; i++) sums[f][i] = 0.0f;
    for (uint k = index / THREADS; k < shape.k; k += 256 / THREADS) {
        float y[WIDTH];
        device const T* from = at.many + long(k) * at.many_depth + line;
        if (whole) {
            tl_load_16(y, from);
        } else {
            for (uint i = 0; i < WIDTH; i++) y[i] = line + i < at.lines ? float(from[i]) : 0.0f;
        }
        for (uint f = 0; f < FEW; f++) {
            float x = float(at.few[long(f) * at.few_line + long(k) * at.few_depth]);
            for (uint i = 0; i < WIDTH; i++) sums[f][i] = fma(x, y[i], sums[f][i]);
        }
    }
    for (uint f = 0; f < FEW; f++)
        for (uint i = 0; i < WIDTH; i++) {
            float sum = sums[f][i];
            for (uint mask = 16; mask >= THREADS; mask /= 2) sum += simd_shuffle_xor(sum, mask);
            if (index % 32 < THREADS) block[(index / 32 * FEW + f) * TL_GEMV_LINES + index % THREADS * WIDTH + i] = sum;
        }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint few = index / TL_GEMV_LINES, mine = index % TL_GEMV_LINES;
    if (few < FEW && first + mine < at.lines) {
        float sum = 0.0f;
        for (uint part = 0; part < 8; part++) sum += block[(part * FEW + few) * TL_GEMV_LINES + mine];
        tl_finish_few<FEW_ARE_ROWS>(epilogue, few, first + mine, sum);
    }
}

// ---- What the others are checked against

// One thread an element: nothing is shared, and nothing has to be in step.
template <typename T, typename Acc, typename Epilogue>
void tl_matmul_slow(device const T* a, device const T* b, constant TlMatmul& shape, thread const Epilogue& epilogue, uint3 group,
                    uint index) {
    uint row = group.x * 16 + index / 16, column = group.y * 16 + index % 16;
    if (row >= shape.m || column >= shape.n) return;
    Acc sum = Acc(0);
    for (uint k = 0; k < shape.k; k++)
        sum = tl_multiply_add(sum, Acc(a[long(row) * shape.a_row + long(k) * shape.a_col]),
                              Acc(b[long(k) * shape.b_row + long(column) * shape.b_col]));
    epilogue(row, column, sum);
}
