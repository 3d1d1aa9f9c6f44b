// Scaled dot product attention and its gradients on Hopper. Behind attention.metal, whose shape it takes, and cuda_hopper.h.
//
// The last warpgroup of a group fetches tiles; each of the SIDES before it has 64 rows of a block, in registers. Tensor maps
// are [batch, position, head, width], with a box of 64 positions by 64 columns that serves all kernels; outside are zeros.
// Groups stay, and draw items of work, a block of a head each, those with the most to do first. `tickets`, which launches
// that run at the same time must not share, is zero before a launch and again after it: `tl_tickets` is one.
//
// As in "FlashAttention-3" (Shah et al. 2024), sections 3.1 and 3.2: the scores of a tile are computed while those of the
// tile before weight their values, and warpgroups take turns at the tensor units. Results are the same in every run.
//
// `Attended` is as in attention.metal, but that results come eight columns of type T at a time:
//
//     void output(ulong at, uint4 eight) const; // and query, key, value
//
// Bytes of threadgroup memory, which begins at a multiple of 1024: tiles, and 256 of flags and items. Kernels have
// __launch_bounds__(128 * SIDES + 128, 1), with SIDES 2 or 3. Fastest on an H100:
//
//     head width   forward: SIDES, KEYS, Q_STAGES, STAGES   queries          keys: SIDES, QUERIES, K_STAGES, STAGES
//     to 64        3, 128, 2, 2                             3, 64, 2, 3      2, 64, 2, 4
//     to 128       2, 128, 1, 2                             2, 64, 1, 2      2, 64, 1, 2
#define TL_HOPPER_FORWARD(SIDES, KEYS, WIDTH, Q_STAGES, STAGES) \
    (((Q_STAGES) * 64 * (SIDES) + (STAGES) * 2 * (KEYS)) * (WIDTH) * 2 + 256)
#define TL_HOPPER_QUERIES(SIDES, KEYS, WIDTH, Q_STAGES, STAGES) \
    (((Q_STAGES) * 128 * (SIDES) + ((STAGES) * 2 + 1) * (KEYS)) * (WIDTH) * 2 + 256)
#define TL_HOPPER_KEYS(SIDES, QUERIES, WIDTH, K_STAGES, STAGES) \
    (((K_STAGES) * 128 * (SIDES) + (STAGES) * 2 * (QUERIES)) * (WIDTH) * 2 + (STAGES) * 8 * (QUERIES) + 256)
#define TL_HOPPER_ITEMS_AT 192

__device__ uint tl_tickets;

// ---- items of work

struct TlItem {
    uint block, head, batch;
};

// Items come for a few heads at a time, as many as level 2 cache keeps the streamed operands of.
struct TlItems {
    uint blocks, heads, some, count;
    bool backwards; // the last block has the most to do

    // `shared` heads stream the same `bytes`.
    TlItems(uint blocks, uint heads, uint batches, uint shared, ulong bytes, bool backwards)
        : blocks(blocks), heads(heads), count(blocks * heads * batches), backwards(backwards) {
        some = min(uint(max(ulong(24 << 20) / bytes, ulong(1))) * shared, heads * batches);
    }
    // The block is past the last one if there is no such item.
    TlItem operator[](uint item) const {
        if (item >= count) return {blocks, 0, 0};
        uint start = item / (some * blocks) * some, now = min(some, count / blocks - start);
        uint block = (item - start * blocks) / now, head = start + (item - start * blocks) % now;
        return {backwards ? blocks - 1 - block : block, head % heads, head / heads};
    }
    // The next item; the last draw of all groups sets tickets back.
    uint draw(uint* tickets) const {
        uint ticket = atomicAdd(tickets, 1);
        if (ticket == count - 1) atomicExch(tickets, 0);
        return ticket + gridDim.x;
    }
};

inline TlItem tl_item(const volatile TlItem& item) {
    return {tl_uniform(item.block), tl_uniform(item.head), tl_uniform(item.batch)};
}

inline void tl_item_put(volatile TlItem& to, const TlItem& item) {
    to.block = item.block;
    to.head = item.head;
    to.batch = item.batch;
}

// ---- what queries see

// Keys in sight of a query: none to all.
inline int tl_sight(const TlAttention& shape, int query) {
    int keys = shape.keys;
    return shape.causal ? max(0, min(keys, query + 1 + keys - int(shape.queries))) : keys;
}

// Tiles of keys that some of `count` queries see.
template <uint KEYS> inline uint tl_tiles(const TlAttention& shape, uint first, uint count) {
    if (first >= shape.queries) return 0;
    return (tl_sight(shape, min(first + count, shape.queries) - 1) + KEYS - 1) / KEYS;
}

// What the 64 queries of a warpgroup see of tiles of KEYS keys.
template <uint KEYS> struct TlView {
    uint tiles, whole; // in sight of some, of all
    int low, high;     // keys in sight of the thread's two rows, counted from its first column

    TlView(const TlAttention& shape, uint first, uint row) {
        tiles = tl_tiles<KEYS>(shape, first, 64);
        whole = tl_sight(shape, first) / KEYS;
        low = tl_sight(shape, first + row) - threadIdx.x % 4 * 2;
        high = tl_sight(shape, first + row + 8) - threadIdx.x % 4 * 2;
    }
    // Scales scores, and hides those that are out of sight.
    void hide(float (&scores)[KEYS / 2], float scale, uint tile) const {
        int from = tile * KEYS;
        #pragma unroll
        for (uint i = 0; i < KEYS / 2; i++)
            scores[i] = int(i / 4 * 8 + i % 2) < (i % 4 < 2 ? low : high) - from ? scores[i] * scale : -INFINITY;
    }
};

// The first of a thread's two rows, the second being 8 on, of its warpgroup's 64.
inline uint tl_row() { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }

// ---- forward

// Weights instead of scores, not yet divided by their sum; what was summed before is to shrink by `shrink`.
template <uint COUNT>
inline void tl_soften(float (&scores)[COUNT], float (&most)[2], float (&sum)[2], float (&shrink)[2], float scale) {
    #pragma unroll
    for (uint r = 0; r < 2; r++) {
        float next[2] = {-INFINITY, -INFINITY}, part[2] = {0.0f, 0.0f};
        #pragma unroll
        for (uint i = r * 2; i < COUNT; i += 4)
            #pragma unroll
            for (uint e = 0; e < 2; e++) next[e] = fmaxf(next[e], scores[i + e]);
        float top = fmaxf(next[0], next[1]);
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        top = fmaxf(most[r], top * scale);
        float base = top == -INFINITY ? 0.0f : top;
        shrink[r] = tl_fast_exp2(most[r] - base);
        most[r] = top;
        #pragma unroll
        for (uint i = r * 2; i < COUNT; i += 4)
            #pragma unroll
            for (uint e = 0; e < 2; e++) {
                scores[i + e] = tl_fast_exp2(fmaf(scores[i + e], scale, -base));
                part[e] += scores[i + e];
            }
        sum[r] = fmaf(sum[r], shrink[r], part[0] + part[1]);
    }
}

template <uint COUNT> inline void tl_shrink(float (&sums)[COUNT], const float (&shrink)[2]) {
    // Once the largest score has been seen, which is soon, nothing shrinks.
    if (!__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
    #pragma unroll
    for (uint i = 0; i < COUNT; i++) sums[i] *= shrink[i / 2 % 2];
}

// The outputs of blocks of 64 * SIDES queries, and their sums.
template <uint WIDTH, uint SIDES, uint KEYS, uint Q_STAGES, uint STAGES, typename T, typename Attended>
inline void tl_hopper_forward(const TlTensorMap& q, const TlTensorMap& k, const TlTensorMap& v, const TlAttention& shape,
                              uint batches, uint* tickets, uchar* block, const Attended& attended) {
    const uint QUERIES = 64 * SIDES, Q_TILE = QUERIES * WIDTH * 2, TILE = KEYS * WIDTH * 2;
    const uint K_AT = Q_STAGES * Q_TILE, V_AT = K_AT + STAGES * TILE, FLAGS_AT = V_AT + STAGES * TILE;
    uint q_tile = tl_shared_address(block), k_tile = q_tile + K_AT, v_tile = q_tile + V_AT;
    TlRing<Q_STAGES> q_ring(q_tile + FLAGS_AT);
    TlRing<STAGES> k_ring(q_ring.flags + q_ring.BYTES), v_ring(k_ring.flags + k_ring.BYTES);
    volatile TlItem* drawn = (volatile TlItem*)(block + FLAGS_AT + TL_HOPPER_ITEMS_AT);
    uint side = tl_uniform(threadIdx.x / 128), blocks = (shape.queries + QUERIES - 1) / QUERIES;
    if (threadIdx.x == 0) {
        q_ring.make(1, 4 * SIDES);
        k_ring.make(1, 4 * SIDES);
        v_ring.make(1, 4 * SIDES);
    }
    tl_flags_made();

    if (side == SIDES) {
        tl_registers_of_fetching<SIDES>();
        if (threadIdx.x != 128 * SIDES) return;
        TlItems items(blocks, shape.heads, batches, shape.shared, ulong(shape.keys) * WIDTH * 4, shape.causal);
        for (uint ticket = blockIdx.x;; ticket = items.draw(tickets)) {
            q_ring.wait_empty();
            TlItem item = items[ticket];
            tl_item_put(drawn[q_ring.stage], item);
            if (item.block == blocks) {
                tl_flag_arrive(q_ring.full());
                return;
            }
            uint first = item.block * QUERIES, kv = item.head / shape.shared;
            tl_fetch_next<QUERIES, WIDTH>(q_ring, q_tile, q, item.batch, item.head, first);
            for (uint tile = tl_tiles<KEYS>(shape, first, QUERIES); tile-- > 0;) {
                tl_fetch_next<KEYS, WIDTH>(k_ring, k_tile, k, item.batch, kv, tile * KEYS);
                tl_fetch_next<KEYS, WIDTH>(v_ring, v_tile, v, item.batch, kv, tile * KEYS);
            }
        }
    } else {
        tl_registers_of_products<SIDES>();
        if (side == SIDES - 1) tl_turn_pass<SIDES>(side);
        float scale = shape.scale * 1.44269504f; // scores are kept times log2(e)
        while (true) {
            q_ring.wait_full();
            TlItem item = tl_item(drawn[q_ring.stage]);
            if (item.block == blocks) return;
            uint first = item.block * QUERIES + side * 64, row = tl_row();
            uint mine = q_tile + q_ring.stage * Q_TILE + side * 64 * 128;
            TlView<KEYS> view(shape, first, row);
            float out[WIDTH / 2], scores[KEYS / 2], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, shrink[2];
            uint weights[KEYS / 16][4];
            tl_fill(out, 0.0f);
            auto score = [&]() {
                tl_turn_wait<SIDES>(side);
                k_ring.wait_full();
                tl_scores<T, QUERIES, WIDTH, KEYS>(scores, mine, k_tile + k_ring.stage * TILE);
            };
            auto weigh = [&]() {
                v_ring.wait_full();
                tl_weigh<T, KEYS>(out, weights, v_tile + v_ring.stage * TILE);
            };
            auto soften = [&](uint tile) {
                // Scores that are only scaled are scaled on the way to their weights.
                bool plain = tile < view.whole && scale >= 0.0f;
                if (!plain) view.hide(scores, scale, tile);
                tl_soften(scores, most, sum, shrink, plain ? scale : 1.0f);
            };
            // From the last tile to the first; other warpgroups of the block may see more.
            for (uint tile = tl_tiles<KEYS>(shape, item.block * QUERIES, QUERIES); tile-- > view.tiles;) {
                tl_turn_wait<SIDES>(side);
                tl_turn_pass<SIDES>(side);
                k_ring.wait_full();
                k_ring.release();
                v_ring.wait_full();
                v_ring.release();
            }
            if (view.tiles > 0) {
                score();
                tl_turn_pass<SIDES>(side);
                tl_products_wait<0>(scores);
                k_ring.release();
                soften(view.tiles - 1);
                tl_narrow<T>(weights, scores);
                for (uint tile = view.tiles - 1; tile-- > 0;) {
                    score();
                    weigh();
                    tl_turn_pass<SIDES>(side);
                    tl_products_wait<1>(scores);
                    k_ring.release();
                    soften(tile);
                    tl_products_wait<0>(out);
                    v_ring.release();
                    tl_shrink(out, shrink);
                    tl_narrow<T>(weights, scores);
                }
            }
            q_ring.release();
            if (view.tiles > 0) {
                weigh();
                tl_products_wait<0>(out);
                v_ring.release();
            }
            #pragma unroll
            for (uint r = 0; r < 2; r++) {
                uint query = first + row + r * 8, width = query < shape.queries ? shape.width : 0;
                sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
                sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
                if (width > 0 && threadIdx.x % 4 == 0)
                    attended.sums((ulong(item.batch) * shape.queries + query) * shape.heads + item.head,
                                  fmaf(most[r], 0.693147181f, log(sum[r])));
                ulong at = tl_attention_place(shape, item.batch, query, item.head, shape.queries, shape.heads) * shape.width;
                tl_put_row<T>(out, r, sum[r] == 0.0f ? 1.0f : 1.0f / sum[r], width,
                              [&](uint column, uint4 eight) { attended.output(at + column, eight); });
            }
        }
    }
}

// ---- gradients

// The two numbers of a query that weights and slopes depend on: minus the logarithm of its sum, in steps of log2(e), and
// what slopes are reduced by, times the scale. Queries that see nothing, or do not exist, have weights of zero.
template <typename Attended>
inline float2 tl_line(const TlAttention& shape, const Attended& attended, uint batch, uint head, uint query) {
    if (query >= shape.queries) return float2(-INFINITY, 0.0f);
    float sum = attended.sum(batch, head, query);
    return float2(sum == -INFINITY ? sum : sum * -1.44269504f, attended.product(batch, head, query) * shape.scale);
}

// The gradients of blocks of 64 * SIDES queries. Keys have a stage more than values: they are read again.
template <uint WIDTH, uint SIDES, uint KEYS, uint Q_STAGES, uint STAGES, typename T, typename Attended>
inline void tl_hopper_queries(const TlTensorMap& q, const TlTensorMap& k, const TlTensorMap& v, const TlTensorMap& gradient,
                              const TlAttention& shape, uint batches, uint* tickets, uchar* block, const Attended& attended) {
    const uint QUERIES = 64 * SIDES, Q_TILE = QUERIES * WIDTH * 2, TILE = KEYS * WIDTH * 2;
    const uint G_AT = Q_STAGES * Q_TILE, K_AT = G_AT + Q_STAGES * Q_TILE, V_AT = K_AT + (STAGES + 1) * TILE;
    const uint FLAGS_AT = V_AT + STAGES * TILE;
    uint q_tile = tl_shared_address(block), k_tile = q_tile + K_AT, v_tile = q_tile + V_AT;
    TlRing<Q_STAGES> q_ring(q_tile + FLAGS_AT);
    TlRing<STAGES + 1> k_ring(q_ring.flags + q_ring.BYTES);
    TlRing<STAGES> v_ring(k_ring.flags + k_ring.BYTES);
    volatile TlItem* drawn = (volatile TlItem*)(block + FLAGS_AT + TL_HOPPER_ITEMS_AT);
    uint side = tl_uniform(threadIdx.x / 128), blocks = (shape.queries + QUERIES - 1) / QUERIES;
    if (threadIdx.x == 0) {
        q_ring.make(1, 4 * SIDES);
        k_ring.make(1, 4 * SIDES);
        v_ring.make(1, 4 * SIDES);
    }
    tl_flags_made();

    if (side == SIDES) {
        tl_registers_of_fetching<SIDES>();
        if (threadIdx.x != 128 * SIDES) return;
        TlItems items(blocks, shape.heads, batches, shape.shared, ulong(shape.keys) * WIDTH * 4, shape.causal);
        for (uint ticket = blockIdx.x;; ticket = items.draw(tickets)) {
            q_ring.wait_empty();
            TlItem item = items[ticket];
            tl_item_put(drawn[q_ring.stage], item);
            if (item.block == blocks) {
                tl_flag_arrive(q_ring.full());
                return;
            }
            uint first = item.block * QUERIES, kv = item.head / shape.shared, to = q_tile + q_ring.stage * Q_TILE;
            tl_flag_expect(q_ring.full(), 2 * Q_TILE);
            tl_fetch<QUERIES, WIDTH>(to, q, q_ring.full(), item.batch, item.head, first);
            tl_fetch<QUERIES, WIDTH>(to + G_AT, gradient, q_ring.full(), item.batch, item.head, first);
            q_ring.next();
            for (uint tile = tl_tiles<KEYS>(shape, first, QUERIES); tile-- > 0;) {
                tl_fetch_next<KEYS, WIDTH>(k_ring, k_tile, k, item.batch, kv, tile * KEYS);
                tl_fetch_next<KEYS, WIDTH>(v_ring, v_tile, v, item.batch, kv, tile * KEYS);
            }
        }
    } else {
        tl_registers_of_products<SIDES>();
        float scale = shape.scale * 1.44269504f;
        while (true) {
            q_ring.wait_full();
            TlItem item = tl_item(drawn[q_ring.stage]);
            if (item.block == blocks) return;
            uint first = item.block * QUERIES + side * 64, row = tl_row();
            uint mine = q_tile + q_ring.stage * Q_TILE + side * 64 * 128, before = 0; // the stage of the keys before
            TlView<KEYS> view(shape, first, row);
            float out[WIDTH / 2], scores[KEYS / 2], products[KEYS / 2];
            uint slopes[KEYS / 16][4];
            float2 lines[2];
            #pragma unroll
            for (uint r = 0; r < 2; r++) lines[r] = tl_line(shape, attended, item.batch, item.head, first + row + r * 8);
            tl_fill(out, 0.0f);
            auto score = [&]() {
                k_ring.wait_full();
                tl_scores<T, QUERIES, WIDTH, KEYS>(scores, mine, k_tile + k_ring.stage * TILE);
                v_ring.wait_full();
                tl_scores<T, QUERIES, WIDTH, KEYS>(products, mine + G_AT, v_tile + v_ring.stage * TILE);
            };
            auto weigh = [&](uint tile) {
                bool whole = tile < view.whole;
                if (!whole) view.hide(scores, scale, tile);
                float factor = whole ? scale : 1.0f;
                #pragma unroll
                for (uint i = 0; i < KEYS / 2; i++) scores[i] = tl_fast_exp2(fmaf(scores[i], factor, lines[i / 2 % 2].x));
            };
            auto slope = [&]() {
                v_ring.release();
                #pragma unroll
                for (uint i = 0; i < KEYS / 2; i++) scores[i] *= fmaf(products[i], shape.scale, -lines[i / 2 % 2].y);
            };
            auto end = [&]() {
                tl_narrow<T>(slopes, scores);
                before = k_ring.stage;
                k_ring.next();
            };
            for (uint tile = tl_tiles<KEYS>(shape, item.block * QUERIES, QUERIES); tile-- > view.tiles;) {
                k_ring.wait_full();
                k_ring.release();
                v_ring.wait_full();
                v_ring.release();
            }
            if (view.tiles > 0) {
                score();
                tl_products_wait<1>(scores);
                weigh(view.tiles - 1);
                tl_products_wait<0>(products);
                slope();
                end();
                for (uint tile = view.tiles - 1; tile-- > 0;) {
                    score();
                    tl_weigh<T, KEYS>(out, slopes, k_tile + before * TILE);
                    tl_products_wait<2>(scores);
                    weigh(tile);
                    tl_products_wait<1>(products);
                    slope();
                    tl_products_wait<0>(out);
                    k_ring.release(before);
                    end();
                }
            }
            q_ring.release();
            if (view.tiles > 0) {
                tl_weigh<T, KEYS>(out, slopes, k_tile + before * TILE);
                tl_products_wait<0>(out);
                k_ring.release(before);
            }
            #pragma unroll
            for (uint r = 0; r < 2; r++) {
                uint query = first + row + r * 8;
                ulong at = tl_attention_place(shape, item.batch, query, item.head, shape.queries, shape.heads) * shape.width;
                tl_put_row<T>(out, r, 1.0f, query < shape.queries ? shape.width : 0,
                              [&](uint column, uint4 eight) { attended.query(at + column, eight); });
            }
        }
    }
}

// The gradients of blocks of 64 * SIDES keys and their values. Rows are keys, columns queries.
template <uint WIDTH, uint SIDES, uint QUERIES, uint K_STAGES, uint STAGES, typename T, typename Attended>
inline void tl_hopper_keys(const TlTensorMap& q, const TlTensorMap& k, const TlTensorMap& v, const TlTensorMap& gradient,
                           const TlAttention& shape, uint batches, uint* tickets, uchar* block, const Attended& attended) {
    const uint KEYS = 64 * SIDES, K_TILE = KEYS * WIDTH * 2, TILE = QUERIES * WIDTH * 2;
    const uint V_AT = K_STAGES * K_TILE, Q_AT = V_AT + K_STAGES * K_TILE, G_AT = Q_AT + STAGES * TILE;
    const uint FLAGS_AT = G_AT + STAGES * TILE;
    uint k_tile = tl_shared_address(block), q_tile = k_tile + Q_AT, g_tile = k_tile + G_AT;
    TlRing<K_STAGES> k_ring(k_tile + FLAGS_AT);
    TlRing<STAGES> ring(k_ring.flags + k_ring.BYTES); // of queries; full flags of gradients follow
    volatile TlItem* drawn = (volatile TlItem*)(block + FLAGS_AT + TL_HOPPER_ITEMS_AT);
    float* lines = (float*)(block + FLAGS_AT + 256); // of each stage: the sums, then the products
    uint side = tl_uniform(threadIdx.x / 128), kv_heads = shape.heads / shape.shared, blocks = (shape.keys + KEYS - 1) / KEYS;
    if (threadIdx.x == 0) {
        k_ring.make(1, 4 * SIDES);
        ring.make(32, 4 * SIDES);
        for (uint i = 0; i < STAGES; i++) tl_flag_make(ring.flags + ring.BYTES + 8 * i, 1);
    }
    tl_flags_made();
    // The first query that sees a key.
    auto sees = [&](uint key) { return shape.causal ? int(key + shape.queries) - int(shape.keys) : int(-0x40000000); };
    auto begin_of = [&](uint block) { return max(sees(block * KEYS), 0) / QUERIES * QUERIES; };

    if (side == SIDES) {
        tl_registers_of_fetching<SIDES>();
        if (threadIdx.x >= 128 * SIDES + 32) return;
        uint lane = threadIdx.x % 32;
        TlItems items(blocks, kv_heads, batches, 1, ulong(shape.queries) * shape.shared * WIDTH * 4, false);
        for (uint ticket = blockIdx.x;;) {
            k_ring.wait_empty();
            TlItem item = items[ticket];
            if (lane == 0) tl_item_put(drawn[k_ring.stage], item);
            if (item.block == blocks) {
                if (lane == 0) tl_flag_arrive(k_ring.full());
                return;
            }
            if (lane == 0) {
                uint to = k_tile + k_ring.stage * K_TILE;
                tl_flag_expect(k_ring.full(), 2 * K_TILE);
                tl_fetch<KEYS, WIDTH>(to, k, k_ring.full(), item.batch, item.head, item.block * KEYS);
                tl_fetch<KEYS, WIDTH>(to + V_AT, v, k_ring.full(), item.batch, item.head, item.block * KEYS);
            }
            k_ring.next();
            for (uint head = item.head * shape.shared; head < (item.head + 1) * shape.shared; head++)
                for (uint start = begin_of(item.block); start < shape.queries; start += QUERIES) {
                    float2 line[QUERIES / 32];
                    #pragma unroll
                    for (uint i = 0; i < QUERIES / 32; i++)
                        line[i] = tl_line(shape, attended, item.batch, head, start + lane + 32 * i);
                    ring.wait_empty();
                    float* to = lines + ring.stage * 2 * QUERIES + lane;
                    #pragma unroll
                    for (uint i = 0; i < QUERIES / 32; i++) {
                        to[32 * i] = line[i].x;
                        to[QUERIES + 32 * i] = line[i].y;
                    }
                    if (lane == 0) {
                        uint full = ring.full(), later = full + ring.BYTES;
                        tl_flag_expect(full, TILE);
                        tl_fetch<QUERIES, WIDTH>(q_tile + ring.stage * TILE, q, full, item.batch, head, start);
                        tl_flag_expect(later, TILE);
                        tl_fetch<QUERIES, WIDTH>(g_tile + ring.stage * TILE, gradient, later, item.batch, head, start);
                    } else tl_flag_arrive(ring.full());
                    ring.next();
                }
            if (lane == 0) ticket = items.draw(tickets);
            ticket = tl_uniform(ticket);
        }
    } else {
        tl_registers_of_products<SIDES>();
        float scale = shape.scale * 1.44269504f;
        while (true) {
            k_ring.wait_full();
            TlItem item = tl_item(drawn[k_ring.stage]);
            if (item.block == blocks) return;
            uint first = item.block * KEYS + side * 64, row = tl_row(), pair = threadIdx.x % 4 * 2;
            uint keys = k_tile + k_ring.stage * K_TILE + side * 64 * 128;
            float of_key[WIDTH / 2], of_value[WIDTH / 2], scores[QUERIES / 2], products[QUERIES / 2];
            uint weights[QUERIES / 16][4], slopes[QUERIES / 16][4];
            tl_fill(of_key, 0.0f);
            tl_fill(of_value, 0.0f);
            uint begin = begin_of(item.block), start = begin;
            bool held = false; // whether the stage before is still read
            for (uint left = (shape.queries - begin + QUERIES - 1) / QUERIES * shape.shared; left > 0; left--) {
                uint now = ring.stage;
                const float* line = lines + now * 2 * QUERIES + pair;
                ring.wait_full();
                tl_scores<T, KEYS, WIDTH, QUERIES>(scores, keys, q_tile + now * TILE);
                tl_flag_wait(ring.full() + ring.BYTES, ring.phase);
                tl_scores<T, KEYS, WIDTH, QUERIES>(products, keys + V_AT, g_tile + now * TILE);
                tl_products_wait<1>(scores);
                if (held) ring.release_before();
                held = true;
                float factor = scale;
                if (int(start) < sees(first + 63)) {
                    factor = 1.0f;
                    int low = sees(first + row) - int(start + pair), high = low + 8;
                    #pragma unroll
                    for (uint i = 0; i < QUERIES / 2; i++)
                        scores[i] = int(i / 4 * 8 + i % 2) >= (i % 4 < 2 ? low : high) ? scores[i] * scale : -INFINITY;
                }
                #pragma unroll
                for (uint i = 0; i < QUERIES / 2; i += 4) {
                    float2 sums = *(const float2*)(line + i * 2);
                    #pragma unroll
                    for (uint e = 0; e < 4; e++) scores[i + e] = tl_fast_exp2(fmaf(scores[i + e], factor, sums[e % 2]));
                }
                tl_narrow<T>(weights, scores);
                tl_weigh<T, QUERIES>(of_value, weights, g_tile + now * TILE);
                tl_products_wait<1>(products);
                #pragma unroll
                for (uint i = 0; i < QUERIES / 2; i += 4) {
                    float2 reduction = *(const float2*)(line + QUERIES + i * 2);
                    #pragma unroll
                    for (uint e = 0; e < 4; e++) scores[i + e] *= fmaf(products[i + e], shape.scale, -reduction[e % 2]);
                }
                tl_narrow<T>(slopes, scores);
                tl_weigh<T, QUERIES>(of_key, slopes, q_tile + now * TILE);
                tl_products_wait<1>(of_value); // for the registers of its weights
                ring.next();
                start += QUERIES;
                if (start >= shape.queries) start = begin; // of the next head
            }
            tl_products_wait<0>(of_key);
            if (held) ring.release_before();
            k_ring.release();
            #pragma unroll
            for (uint r = 0; r < 2; r++) {
                uint key = first + row + r * 8, width = key < shape.keys ? shape.width : 0;
                ulong at = tl_attention_place(shape, item.batch, key, item.head, shape.keys, kv_heads) * shape.width;
                tl_put_row<T>(of_key, r, 1.0f, width, [&](uint column, uint4 eight) { attended.key(at + column, eight); });
                tl_put_row<T>(of_value, r, 1.0f, width, [&](uint column, uint4 eight) { attended.value(at + column, eight); });
            }
        }
    }
}
