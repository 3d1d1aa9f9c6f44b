// Hopper (sm_90a): tiles that the tensor memory accelerator brings into threadgroup memory, flags for their arrival, and
// products of them by wgmma. Behind cuda_attention.h, for narrowing. Instructions and layouts: PTX ISA, "Asynchronous
// Warpgroup Level Matrix Instructions" and "cp.async.bulk.tensor".

// What a tensor map is, for kernels' arguments.
struct __align__(64) TlTensorMap {
    ulong opaque[16];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Threadgroup memory that the dispatch brings, in swizzled tiles.
#define TL_HOPPER_BLOCK(NAME) extern __shared__ __align__(1024) uchar NAME[]


// Tells the compiler that a number is the same in all lanes.
inline uint tl_uniform(uint x) { return __shfl_sync(0xffffffffu, x, 0); }

// ---- flags: barriers in threadgroup memory

inline uint tl_shared_address(const void* pointer) { return uint(__cvta_generic_to_shared(pointer)); }

inline void tl_flag_make(uint flag, uint count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(flag), "r"(count) : "memory");
}

inline void tl_flag_arrive(uint flag) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(flag) : "memory"); }

// Arrives, and says how many bytes are to come.
inline void tl_flag_expect(uint flag, uint bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(flag), "r"(bytes) : "memory");
}

// Until the flag's phase of this parity is over.
inline void tl_flag_wait(uint flag, uint phase) {
    uint done = 0;
    for (uint spin = 0; !done; spin++) {
#ifdef TL_SPIN_LIMIT // to find what waits for ever
        if (spin == TL_SPIN_LIMIT) __trap();
#endif
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(flag), "r"(phase) : "memory");
    }
}

// A ring of STAGES places with a flag each for "full" and, behind those, "empty": where one side of it is.
template <uint STAGES> struct TlRing {
    enum : uint { BYTES = 16 * STAGES };
    uint flags, stage, phase;

    TlRing(uint at) : flags(at), stage(0), phase(0) {}
    uint full() const { return flags + 8 * stage; }
    uint empty() const { return flags + 8 * (STAGES + stage); }
    void make(uint producers, uint consumers) const {
        for (uint i = 0; i < STAGES; i++) {
            tl_flag_make(flags + 8 * i, producers);
            tl_flag_make(flags + 8 * (STAGES + i), consumers);
        }
    }
    void wait_full() const { tl_flag_wait(full(), phase); }
    void wait_empty() const { tl_flag_wait(empty(), phase ^ 1); }
    void next() {
        stage++;
        if (stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
    // By a whole warp that has read a place.
    void release(uint stage) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) tl_flag_arrive(flags + 8 * (STAGES + stage));
    }
    void release_before() const { release(stage == 0 ? STAGES - 1 : stage - 1); }
    void release() {
        release(stage);
        next();
    }
};

// By all threads of the group, after its flags have been made by the first.
inline void tl_flags_made() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
}

// ---- tiles

// ROWS rows of a head, WIDTH columns: panels of 64 columns, one behind the other.
template <uint ROWS, uint WIDTH>
inline void tl_fetch(uint to, const TlTensorMap& map, uint flag, uint batch, uint head, uint position) {
    #pragma unroll
    for (uint panel = 0; panel < WIDTH / 64; panel++)
        #pragma unroll
        for (uint row = 0; row < ROWS; row += 64)
            asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                         " [%0], [%1, {%2, %3, %4, %5}], [%6];"
                         ::"r"(to + (panel * ROWS + row) * 128), "l"(&map), "r"(panel * 64), "r"(head),
                         "r"(position + row), "r"(batch), "r"(flag) : "memory");
}

// The same into the next place of a ring that begins at `to`.
template <uint ROWS, uint WIDTH, uint STAGES>
inline void tl_fetch_next(TlRing<STAGES>& ring, uint to, const TlTensorMap& map, uint batch, uint head, uint position) {
    const uint BYTES = ROWS * WIDTH * 2;
    ring.wait_empty();
    tl_flag_expect(ring.full(), BYTES);
    tl_fetch<ROWS, WIDTH>(to + ring.stage * BYTES, map, ring.full(), batch, head, position);
    ring.next();
}

// Describes a swizzled tile to wgmma: groups of 8 rows follow each other, panels of 64 columns are `panel` bytes apart.
inline ulong tl_tile(uint address, uint panel) {
    return ulong(1) << 62 | ulong(64) << 32 | ulong(panel / 16) << 16 | (address & 0x3ffff) / 16;
}

// ---- products

inline void tl_products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
inline void tl_products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Keeps the compiler from moving uses of sums across.
template <uint COUNT> inline void tl_pin(float (&x)[COUNT]) {
    #pragma unroll
    for (uint i = 0; i < COUNT; i++) asm volatile("" : "+f"(x[i])::"memory");
}

// Waits until at most LEFT groups of products are under way; `sums` are of one that is done.
template <uint LEFT, uint COUNT> inline void tl_products_wait(float (&sums)[COUNT]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
    tl_pin(sums);
}

#define TL_SUMS_8(X, I) \
    "+f"(X[I]), "+f"(X[I + 1]), "+f"(X[I + 2]), "+f"(X[I + 3]), "+f"(X[I + 4]), "+f"(X[I + 5]), "+f"(X[I + 6]), "+f"(X[I + 7])
#define TL_SUMS_32(X, I) TL_SUMS_8(X, I), TL_SUMS_8(X, I + 8), TL_SUMS_8(X, I + 16), TL_SUMS_8(X, I + 24)
#define TL_SUMS_64(X) TL_SUMS_32(X, 0), TL_SUMS_32(X, 32)
#define TL_PLACES_32                                                                                         \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31"
#define TL_PLACES_64                                                                                     \
    TL_PLACES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52," \
                 "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// Two products of 64 rows and 16 elements of depth. With both tiles in memory, the depth along their rows; `more` says
// whether to add. With the left one in registers, the depth across the rows of the right one, adding.
#define TL_PRODUCTS(T, TYPE, N, SUMS, PLACES, P0, P1, P2, P3, P4)                                               \
    inline void tl_product(float (&sums)[N / 2], ulong left, ulong right, const uint more, const T*) {          \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " P2 ", 0;"                                                \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                            \
                     " {" PLACES "}, " P0 ", " P1 ", p, 1, 1, 0, 0; }"                                          \
                     : SUMS : "l"(left), "l"(right), "r"(more));                                                \
    }                                                                                                           \
    inline void tl_product(float (&sums)[N / 2], const uint (&left)[4], ulong right, const T*) {                \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0;"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                            \
                     " {" PLACES "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", p, 1, 1, 1; }"                   \
                     : SUMS : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));              \
    }
#define TL_SUMS_OF_64 TL_SUMS_32(sums, 0)
#define TL_SUMS_OF_128 TL_SUMS_64(sums)
TL_PRODUCTS(half, "f16", 64, TL_SUMS_OF_64, TL_PLACES_32, "%32", "%33", "%34", "%35", "%36")
TL_PRODUCTS(half, "f16", 128, TL_SUMS_OF_128, TL_PLACES_64, "%64", "%65", "%66", "%67", "%68")
TL_PRODUCTS(bfloat, "bf16", 64, TL_SUMS_OF_64, TL_PLACES_32, "%32", "%33", "%34", "%35", "%36")
TL_PRODUCTS(bfloat, "bf16", 128, TL_SUMS_OF_128, TL_PLACES_64, "%64", "%65", "%66", "%67", "%68")
#undef TL_PRODUCTS
#undef TL_SUMS_OF_64
#undef TL_SUMS_OF_128
#undef TL_SUMS_64
#undef TL_SUMS_32
#undef TL_SUMS_8
#undef TL_PLACES_64
#undef TL_PLACES_32

// The products of 64 rows of a tile of ROWS and the N rows of another, a group of their own.
template <typename T, uint ROWS, uint WIDTH, uint N> inline void tl_scores(float (&sums)[N / 2], uint left, uint right) {
    ulong a = tl_tile(left, 16), b = tl_tile(right, 16);
    tl_products_begin();
    #pragma unroll
    for (uint k = 0; k < WIDTH / 16; k++)
        tl_product(sums, a + k / 4 * ROWS * 8 + k % 4 * 2, b + k / 4 * N * 8 + k % 4 * 2, k > 0, (const T*)0);
    tl_products_end();
}

// Adds the product of narrow weights and a tile of DEPTH rows, a group of its own.
template <typename T, uint DEPTH, uint COUNT>
inline void tl_weigh(float (&sums)[COUNT], const uint (&weights)[DEPTH / 16][4], uint tile) {
    ulong b = tl_tile(tile, DEPTH * 128);
    tl_products_begin();
    #pragma unroll
    for (uint k = 0; k < DEPTH / 16; k++) tl_product(sums, weights[k], b + k * 128, (const T*)0);
    tl_products_end();
}

// Sums as weights of the next product.
template <typename T, uint COUNT> inline void tl_narrow(uint (&weights)[COUNT / 8][4], const float (&sums)[COUNT]) {
    #pragma unroll
    for (uint i = 0; i < COUNT / 2; i++) weights[i / 4][i % 4] = tl_narrow_pair(sums[2 * i], sums[2 * i + 1], (const T*)0);
}

template <uint COUNT> inline void tl_fill(float (&x)[COUNT], float value) {
    #pragma unroll
    for (uint i = 0; i < COUNT; i++) x[i] = value;
}

// Hands on what a thread has of a row (`r` = 0 or 1), times a factor and narrowed, in eights: the four lanes of a row swap
// pairs, so that each has all of every fourth eight. `put` takes a column and the eight.
template <typename T, uint COUNT, typename Put>
inline void tl_put_row(const float (&sums)[COUNT], uint r, float factor, uint width, const Put& put) {
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    #pragma unroll
    for (uint i = 0; i < COUNT / 4; i += 4) {
        uint w[4];
        #pragma unroll
        for (uint j = 0; j < 4; j++) {
            const float* pair = sums + (i + j) * 4 + r * 2;
            w[j] = tl_narrow_pair(pair[0] * factor, pair[1] * factor, (const T*)0);
        }
        #pragma unroll
        for (uint j = 0; j < 4; j += 2) {
            uint other = __shfl_xor_sync(0xffffffffu, odd ? w[j] : w[j + 1], 1);
            if (odd) w[j] = other;
            else w[j + 1] = other;
        }
        uint low = __shfl_xor_sync(0xffffffffu, upper ? w[0] : w[2], 2);
        uint high = __shfl_xor_sync(0xffffffffu, upper ? w[1] : w[3], 2);
        uint column = (i + threadIdx.x % 4) * 8;
        if (column < width) put(column, upper ? uint4(low, high, w[2], w[3]) : uint4(w[0], w[1], low, high));
    }
}

// ---- warpgroups

// Warpgroups take turns: named barriers 1 to SIDES. The last one passes first.
template <uint SIDES> inline void tl_turn_wait(uint side) { asm volatile("bar.sync %0, 256;" ::"r"(side + 1) : "memory"); }
template <uint SIDES> inline void tl_turn_pass(uint side) {
    asm volatile("bar.arrive %0, 256;" ::"r"(side + 1 < SIDES ? side + 2 : 1) : "memory");
}

// How many registers a thread of either kind has, of the 65536 of all.
template <uint SIDES> inline void tl_registers_of_fetching() {
    if (SIDES == 3) asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    else asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
}

template <uint SIDES> inline void tl_registers_of_products() {
    if (SIDES == 3) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
    else asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
}

#endif
