// Scaled dot product attention by matrix units: half and bfloat heads that lie as products want them.
//
// A group has a block of queries of one head, ROWS a simdgroup, and goes through the keys, KEYS at a time. Scores become
// weights where they are: in the strip of threadgroup memory that each simdgroup has, or, where it is known which lane
// holds which element (shaders/prelude/cuda_attention.h), in registers. What was summed so far shrinks when a larger score
// comes (Dao 2023, "FlashAttention-2", algorithm 1). Scores are kept times log2(e).
//
// Behind matmul.metal and attention.metal.
// `Attended` is as in the latter.

// Threadgroup memory of a simdgroup: scores, weights, and for each row factors, most and sum; in floats.
#define TL_ATTEND_STRIP(ROWS, KEYS) ((ROWS) * ((KEYS) + 4) + (ROWS) * ((KEYS) + 8) / 2 + 10 * (ROWS))
#define TL_ATTEND_BLOCK(ROWS, SIDES, KEYS, WIDTH, APART) \
    (((ROWS) * (SIDES) + ((APART) ? 2 : 1) * (KEYS)) * ((WIDTH) + 8) / 2 + (SIDES) * TL_ATTEND_STRIP(ROWS, KEYS))

// What becomes of the score of a row and a key of the block: scaled, masked, minus infinity if out of sight.
template <typename Attended> struct TlSight {
    constant TlAttention* shape;
    thread const Attended* attended;
    float scale; // with log2(e)
    uint batch, head, query, key;
    bool whole; // all of the block is in sight

    // Whether scores are only scaled, by a factor that keeps their order.
    bool plain() const { return !Attended::MASKED && whole && scale >= 0.0f; }

    float operator()(uint row, uint column, float score) const {
        if (!Attended::MASKED && whole) return score * scale;
        bool seen = whole || (query + row < shape->queries && key + column < tl_attention_visible(*shape, query + row));
        if (!Attended::MASKED) return seen ? score * scale : -INFINITY;
        return seen ? fma(attended->mask(batch, head, query + row, key + column), 1.44269504f, score * scale) : -INFINITY;
    }
};

// Where a result goes.
template <typename Attended> struct TlAttendOut {
    constant TlAttention* shape;
    thread const Attended* attended;
    uint batch, head;

    void operator()(uint row, uint column, float x) const {
        ulong place = tl_attention_place(*shape, batch, row, head, shape->queries, shape->heads);
        attended->output(place * shape->width + column, x);
    }
    // The logarithm of what the weights of a query are divided by; `most` is in steps of log2(e).
    void sum(uint row, float most, float sum) const {
        if (row < shape->queries)
            attended->sums((ulong(batch) * shape->queries + row) * shape->heads + head, fma(most, 0.693147181f, log(sum)));
    }
};

// What the weights and slopes of gradients depend on, beside the scores. `lines` has for each query of the block the
// logarithm of its sum, in steps of log2(e), and behind those what slopes are reduced by.
template <typename Attended> struct TlSlopes {
    constant TlAttention* shape;
    thread const Attended* attended;
    threadgroup const float* lines;
    uint count; // queries of the block
    uint batch, head, query, key;
    bool whole;

    // What is added to a scaled score to make it a weight's logarithm.
    float bias(uint row, uint column) const {
        bool seen = whole || (query + row < shape->queries && key + column < tl_attention_visible(*shape, query + row));
        if (!Attended::MASKED) return seen ? -lines[row] : -INFINITY;
        return seen ? fma(attended->mask(batch, head, query + row, key + column), 1.44269504f, -lines[row]) : -INFINITY;
    }
    float product(uint row) const { return lines[count + row]; }
};

// Where gradients go.
template <typename Attended> struct TlQueryOut {
    constant TlAttention* shape;
    thread const Attended* attended;
    uint batch, head;

    void operator()(uint row, uint column, float x) const {
        ulong place = tl_attention_place(*shape, batch, row, head, shape->queries, shape->heads);
        attended->query(place * shape->width + column, x);
    }
};

template <bool VALUE, typename Attended> struct TlKeyOut {
    constant TlAttention* shape;
    thread const Attended* attended;
    uint batch, head;

    void operator()(uint row, uint column, float x) const {
        ulong place = tl_attention_place(*shape, batch, row, head, shape->keys, shape->heads / shape->shared);
        if (VALUE) attended->value(place * shape->width + column, x);
        else attended->key(place * shape->width + column, x);
    }
};

#ifndef TL_CUDA

// The state of the rows is in the strip.
template <uint M> struct TlAttending {
    uint unused;
};

template <uint KEYS, uint M> threadgroup float* tl_attend_state(threadgroup float* strip) {
    return strip + M * (KEYS + 4) + M * (KEYS + 8) / 2;
}

template <uint KEYS, uint M> void tl_attend_clear(thread TlAttending<M>& state, threadgroup float* strip, uint lane) {
    threadgroup float* rows = tl_attend_state<KEYS, M>(strip) + 8 * M;
    if (lane < M) {
        rows[lane] = -INFINITY;
        rows[M + lane] = 0.0f;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Multiplies each row by its factor, which stands eight times in `factors`: whichever lane holds what, the factors are
// held alike.
template <uint M, uint N> void tl_attend_scale(thread TlUnits<M, N>& out, threadgroup const float* factors) {
    for (uint i = 0; i < M / 8; i++) {
        simdgroup_float8x8 factor;
        simdgroup_load(factor, factors + i * 64, 8);
        for (uint j = 0; j < N / 8; j++)
            for (uint e = 0; e < 2; e++) out.part[i][j].thread_elements()[e] *= factor.thread_elements()[e];
    }
}

template <typename T, uint M, uint KEYS, uint N, typename Sight>
void tl_attend_soften(thread TlUnits<M, KEYS>& scores, thread TlAttending<M>& state, thread TlUnits<M, N>& out,
                      threadgroup float* strip, thread const Sight& sight, uint lane) {
    const uint PITCH = KEYS + 4, LANES = 32 / M; // lanes of a row
    threadgroup T* weights = (threadgroup T*)(strip + M * PITCH);
    threadgroup float* factors = tl_attend_state<KEYS, M>(strip);
    threadgroup float* rows = factors + 8 * M;
    for (uint i = 0; i < M / 8; i++)
        for (uint j = 0; j < KEYS / 8; j++) simdgroup_store(scores.part[i][j], strip + i * 8 * PITCH + j * 8, PITCH);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    uint row = lane / LANES, part = lane % LANES;
    float before = rows[row], most = before, sum = 0.0f;
    for (uint c = part; c < KEYS; c += LANES) {
        float x = sight(row, c, strip[row * PITCH + c]);
        strip[row * PITCH + c] = x;
        most = x > most ? x : most;
    }
    for (uint mask = 1; mask < LANES; mask *= 2) {
        float other = simd_shuffle_xor(most, ushort(mask));
        most = other > most ? other : most;
    }
    float base = most == -INFINITY ? 0.0f : most;
    for (uint c = part; c < KEYS; c += LANES) {
        float weight = exp2(strip[row * PITCH + c] - base);
        sum += weight;
        weights[row * (KEYS + 8) + c] = T(weight);
    }
    for (uint mask = 1; mask < LANES; mask *= 2) sum += simd_shuffle_xor(sum, ushort(mask));
    float shrink = exp2(before - base);
    for (uint c = part; c < 8; c += LANES) factors[row * 8 + c] = shrink;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (part == 0) {
        rows[row] = most;
        rows[M + row] = fma(rows[M + row], shrink, sum);
    }
    tl_attend_scale(out, factors);
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Adds the values that the weights are of: a tile of KEYS rows.
template <uint PITCH, typename T, uint M, uint KEYS, uint N>
void tl_attend_add(thread TlUnits<M, N>& out, thread const TlUnits<M, KEYS>& scores, threadgroup float* strip,
                   threadgroup const T* values) {
    threadgroup const T* weights = (threadgroup const T*)(strip + M * (KEYS + 4));
    tl_units_step<KEYS, false, KEYS + 8, true, PITCH>(out, weights, values);
}

// Divides by the sums, and hands them on.
template <uint KEYS, uint M, uint N, typename Out>
void tl_attend_end(thread TlUnits<M, N>& out, thread const TlAttending<M>& state, threadgroup float* strip,
                   thread const Out& to, uint query, uint lane) {
    threadgroup float* factors = tl_attend_state<KEYS, M>(strip);
    threadgroup const float* rows = factors + 8 * M;
    if (lane < M) {
        float sum = rows[M + lane];
        to.sum(query + lane, rows[lane], sum);
        for (uint c = 0; c < 8; c++) factors[lane * 8 + c] = sum == 0.0f ? 1.0f : 1.0f / sum;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    tl_attend_scale(out, factors);
}

// Makes scores weights, and products of gradients and values the gradients of scores. Where each element stands is asked
// by way of the strip: what belongs to it is loaded as a matrix, which has the same elements in the same lanes.
template <bool KEYS_ARE_ROWS, uint M, uint N, typename Slopes>
void tl_attend_slopes(thread TlUnits<M, N>& scores, thread TlUnits<M, N>& products, threadgroup float* strip,
                      thread const Slopes& slopes, float scale, uint lane) {
    const uint PITCH = N + 4;
    threadgroup float* reductions = strip + M * PITCH;
    for (uint at = lane; at < M * N; at += 32) {
        uint row = at / N, column = at % N, query = KEYS_ARE_ROWS ? column : row;
        strip[row * PITCH + column] = slopes.bias(query, KEYS_ARE_ROWS ? row : column);
        reductions[row * PITCH + column] = slopes.product(query);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < M / 8; i++)
        for (uint j = 0; j < N / 8; j++) {
            simdgroup_float8x8 bias, reduction;
            simdgroup_load(bias, strip + i * 8 * PITCH + j * 8, PITCH);
            simdgroup_load(reduction, reductions + i * 8 * PITCH + j * 8, PITCH);
            for (uint e = 0; e < 2; e++) {
                float weight = exp2(fma(scores.part[i][j].thread_elements()[e], scale * 1.44269504f, bias.thread_elements()[e]));
                float product = products.part[i][j].thread_elements()[e] - reduction.thread_elements()[e];
                scores.part[i][j].thread_elements()[e] = weight;
                products.part[i][j].thread_elements()[e] = weight * product * scale;
            }
        }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Adds the product of these sums, narrowed, and a tile of N rows.
template <uint PITCH, typename T, uint M, uint N, uint COLUMNS>
void tl_attend_product(thread TlUnits<M, COLUMNS>& out, thread TlUnits<M, N>& sums, threadgroup float* strip,
                       threadgroup const T* tile) {
    threadgroup T* narrow = (threadgroup T*)strip;
    for (uint i = 0; i < M / 8; i++)
        for (uint j = 0; j < N / 8; j++) {
            simdgroup_matrix<T, 8, 8> part;
            for (uint e = 0; e < 2; e++) part.thread_elements()[e] = T(sums.part[i][j].thread_elements()[e]);
            simdgroup_store(part, narrow + i * 8 * (N + 8) + j * 8, N + 8);
        }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    tl_units_step<N, false, N + 8, true, PITCH>(out, (threadgroup const T*)narrow, tile);
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

#endif

// The outputs of a block of queries, and their sums. APART says whether keys and values have a tile each, so that the next
// ones are on their way while these are computed with.
template <uint ROWS, uint SIDES, uint KEYS, uint WIDTH, bool APART, typename T, typename Attended>
void tl_attend_forward(device const T* q, device const T* k, device const T* v, constant TlAttention& shape,
                       threadgroup float* block, thread const Attended& attended, uint3 group, uint index) {
    const uint QUERIES = ROWS * SIDES, THREADS = 32 * SIDES, PITCH = WIDTH + 8;
    threadgroup T* q_tile = (threadgroup T*)block;
    threadgroup T* k_tile = q_tile + QUERIES * PITCH;
    threadgroup T* v_tile = APART ? k_tile + KEYS * PITCH : k_tile;
    uint side = index / 32, lane = index % 32;
    threadgroup float* strip = block + (QUERIES + (APART ? 2 : 1) * KEYS) * PITCH / 2 + side * TL_ATTEND_STRIP(ROWS, KEYS);
    // Of causal attention the last block has the most to do: it comes first.
    uint blocks = (shape.queries + QUERIES - 1) / QUERIES;
    uint first = (blocks - 1 - group.x % blocks) * QUERIES;
    uint head = group.x / blocks % shape.heads, batch = group.x / blocks / shape.heads, kv = head / shape.shared;
    q += long(batch) * shape.q.batch + long(head) * shape.q.head + long(first) * shape.q.position;
    k += long(batch) * shape.k.batch + long(kv) * shape.k.head;
    v += long(batch) * shape.v.batch + long(kv) * shape.v.head;
    uint last = min(first + QUERIES, shape.queries) - 1, visible = tl_attention_visible(shape, last);
    TlUnits<ROWS, WIDTH> out;
    TlUnits<ROWS, KEYS> scores;
    TlAttending<ROWS> state;
    tl_units_clear(out);
    tl_attend_clear<KEYS>(state, strip, lane);
    TlSight<Attended> sight = {&shape, &attended, shape.scale * 1.44269504f, batch, head, first + side * ROWS, 0, false};
    // Up to here all queries of the block see all keys.
    uint whole = last - first + 1 < QUERIES ? 0 : tl_attention_visible(shape, first);
    tl_units_load<TL_DEPTH_CONTIGUOUS, QUERIES, WIDTH, THREADS>(q_tile, q, shape.q.position, 1, shape.queries - first, shape.width, index);
    if (APART) {
        tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(k_tile, k, shape.k.position, 1, shape.keys, shape.width, index);
        tl_copies_end();
        tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(v_tile, v, shape.v.position, 1, shape.keys, shape.width, index);
        tl_copies_end();
    }
    for (uint start = 0; start < visible; start += KEYS) {
        uint next = start + KEYS;
        if (!APART) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(
                k_tile, k + long(start) * shape.k.position, shape.k.position, 1, shape.keys - start, shape.width, index);
            tl_copies_end();
        }
        tl_copies_arrive<(APART ? 1 : 0)>();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tl_units_clear(scores);
        tl_units_step<WIDTH, false, PITCH, false, PITCH>(scores, q_tile + side * ROWS * PITCH, k_tile);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        device const T* from = APART ? k + long(next) * shape.k.position : v + long(start) * shape.v.position;
        if (!APART || next < visible)
            tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(
                k_tile, from, APART ? shape.k.position : shape.v.position, 1, shape.keys - (APART ? next : start), shape.width, index);
        tl_copies_end();
        sight.key = start;
        sight.whole = next <= whole;
        tl_attend_soften<T>(scores, state, out, strip, sight, lane);
        tl_copies_arrive<(APART ? 1 : 0)>();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tl_attend_add<PITCH>(out, scores, strip, v_tile);
        if (APART) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (next < visible)
                tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(
                    v_tile, v + long(next) * shape.v.position, shape.v.position, 1, shape.keys - next, shape.width, index);
            tl_copies_end();
        }
    }
    tl_copies_arrive<0>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    TlAttendOut<Attended> to = {&shape, &attended, batch, head};
    tl_attend_end<KEYS>(out, state, strip, to, first + side * ROWS, lane);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tl_units_finish(out, block + side * 8 * (WIDTH + 4), to, first + side * ROWS, 0, shape.queries, shape.width, lane);
}

// Threadgroup memory of the gradients, in floats: tiles of ROWS * SIDES rows of two operands and OTHERS rows of two, two
// numbers a query, and strips.
#define TL_SLOPES_BLOCK(ROWS, SIDES, OTHERS, WIDTH, QUERIES) \
    (((ROWS) * (SIDES) + (OTHERS)) * ((WIDTH) + 8) + 2 * (QUERIES) + (SIDES) * 2 * (ROWS) * ((OTHERS) + 4))

// The lines of TlSlopes, for COUNT queries from `first` on.
template <uint COUNT, uint THREADS, typename Attended>
void tl_attend_lines(threadgroup float* lines, constant TlAttention& shape, thread const Attended& attended, uint batch, uint head,
                     uint first, uint index) {
    for (uint i = index; i < COUNT; i += THREADS) {
        bool inside = first + i < shape.queries;
        float sum = inside ? attended.sum(batch, head, first + i) : -INFINITY;
        // Queries that see nothing have weights of zero.
        lines[i] = sum == -INFINITY ? INFINITY : sum * 1.44269504f;
        lines[COUNT + i] = inside ? attended.product(batch, head, first + i) : 0.0f;
    }
}

// The gradients of a block of queries.
template <uint ROWS, uint SIDES, uint KEYS, uint WIDTH, typename T, typename Attended>
void tl_attend_queries(device const T* q, device const T* k, device const T* v, device const T* gradient,
                       constant TlAttention& shape, threadgroup float* block, thread const Attended& attended, uint3 group,
                       uint index) {
    const uint QUERIES = ROWS * SIDES, THREADS = 32 * SIDES, PITCH = WIDTH + 8;
    threadgroup T* q_tile = (threadgroup T*)block;
    threadgroup T* g_tile = q_tile + QUERIES * PITCH;
    threadgroup T* k_tile = g_tile + QUERIES * PITCH;
    threadgroup T* v_tile = k_tile + KEYS * PITCH;
    threadgroup float* lines = block + (QUERIES + KEYS) * PITCH;
    uint side = index / 32, lane = index % 32;
    threadgroup float* strip = lines + 2 * QUERIES + side * 2 * ROWS * (KEYS + 4);
    uint blocks = (shape.queries + QUERIES - 1) / QUERIES;
    uint first = (blocks - 1 - group.x % blocks) * QUERIES;
    uint head = group.x / blocks % shape.heads, batch = group.x / blocks / shape.heads, kv = head / shape.shared;
    q += long(batch) * shape.q.batch + long(head) * shape.q.head + long(first) * shape.q.position;
    gradient += long(batch) * shape.gradient.batch + long(head) * shape.gradient.head + long(first) * shape.gradient.position;
    k += long(batch) * shape.k.batch + long(kv) * shape.k.head;
    v += long(batch) * shape.v.batch + long(kv) * shape.v.head;
    uint last = min(first + QUERIES, shape.queries) - 1, visible = tl_attention_visible(shape, last);
    uint whole = last - first + 1 < QUERIES ? 0 : tl_attention_visible(shape, first);
    TlUnits<ROWS, WIDTH> out;
    TlUnits<ROWS, KEYS> scores, products;
    tl_units_clear(out);
    tl_units_load<TL_DEPTH_CONTIGUOUS, QUERIES, WIDTH, THREADS>(q_tile, q, shape.q.position, 1, shape.queries - first, shape.width, index);
    tl_units_load<TL_DEPTH_CONTIGUOUS, QUERIES, WIDTH, THREADS>(g_tile, gradient, shape.gradient.position, 1, shape.queries - first, shape.width, index);
    tl_attend_lines<QUERIES, THREADS>(lines, shape, attended, batch, head, first, index);
    TlSlopes<Attended> slopes = {&shape, &attended, lines + side * ROWS, QUERIES, batch, head, first + side * ROWS, 0, false};
    for (uint start = 0; start < visible; start += KEYS) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(
            k_tile, k + long(start) * shape.k.position, shape.k.position, 1, shape.keys - start, shape.width, index);
        tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(
            v_tile, v + long(start) * shape.v.position, shape.v.position, 1, shape.keys - start, shape.width, index);
        tl_copies_end();
        tl_copies_arrive<0>();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tl_units_clear(scores);
        tl_units_clear(products);
        tl_units_step<WIDTH, false, PITCH, false, PITCH>(scores, q_tile + side * ROWS * PITCH, k_tile);
        tl_units_step<WIDTH, false, PITCH, false, PITCH>(products, g_tile + side * ROWS * PITCH, v_tile);
        slopes.key = start;
        slopes.whole = start + KEYS <= whole;
        tl_attend_slopes<false>(scores, products, strip, slopes, shape.scale, lane);
        tl_attend_product<PITCH>(out, products, strip, k_tile);
    }
    tl_copies_end();
    tl_copies_arrive<0>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    TlQueryOut<Attended> to = {&shape, &attended, batch, head};
    tl_units_finish(out, block + side * 8 * (WIDTH + 4), to, first + side * ROWS, 0, shape.queries, shape.width, lane);
}

// The gradients of a block of keys and their values, or, where the sums of both are too many, of one of them.
template <uint ROWS, uint SIDES, uint QUERIES, uint WIDTH, bool OF_KEY, bool OF_VALUE, typename T, typename Attended>
void tl_attend_keys(device const T* q, device const T* k, device const T* v, device const T* gradient,
                    constant TlAttention& shape, threadgroup float* block, thread const Attended& attended, uint3 group,
                    uint index) {
    const uint KEYS = ROWS * SIDES, THREADS = 32 * SIDES, PITCH = WIDTH + 8;
    threadgroup T* k_tile = (threadgroup T*)block;
    threadgroup T* v_tile = k_tile + KEYS * PITCH;
    threadgroup T* q_tile = v_tile + KEYS * PITCH;
    threadgroup T* g_tile = q_tile + QUERIES * PITCH;
    threadgroup float* lines = block + (KEYS + QUERIES) * PITCH;
    uint side = index / 32, lane = index % 32;
    threadgroup float* strip = lines + 2 * QUERIES + side * 2 * ROWS * (QUERIES + 4);
    uint blocks = (shape.keys + KEYS - 1) / KEYS, kv_heads = shape.heads / shape.shared;
    uint first = group.x % blocks * KEYS;
    uint kv = group.x / blocks % kv_heads, batch = group.x / blocks / kv_heads;
    k += long(batch) * shape.k.batch + long(kv) * shape.k.head + long(first) * shape.k.position;
    v += long(batch) * shape.v.batch + long(kv) * shape.v.head + long(first) * shape.v.position;
    // The queries that see the first key are the last ones; those before `all` do not see the last key.
    uint begin = 0, all = 0;
    if (shape.causal) {
        begin = first + shape.queries > shape.keys ? first + shape.queries - shape.keys : 0;
        all = first + KEYS + shape.queries > shape.keys ? first + KEYS + shape.queries - shape.keys : 0;
    }
    bool ragged = first + KEYS > shape.keys;
    TlUnits<ROWS, WIDTH> of_key, of_value;
    TlUnits<ROWS, QUERIES> scores, products;
    tl_units_clear(of_key);
    tl_units_clear(of_value);
    tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(k_tile, k, shape.k.position, 1, shape.keys - first, shape.width, index);
    tl_units_load<TL_DEPTH_CONTIGUOUS, KEYS, WIDTH, THREADS>(v_tile, v, shape.v.position, 1, shape.keys - first, shape.width, index);
    TlSlopes<Attended> slopes = {&shape, &attended, lines, QUERIES, batch, 0, 0, first + side * ROWS, false};
    for (uint head = kv * shape.shared; head < (kv + 1) * shape.shared; head++) {
        device const T* queries = q + long(batch) * shape.q.batch + long(head) * shape.q.head;
        device const T* gradients = gradient + long(batch) * shape.gradient.batch + long(head) * shape.gradient.head;
        for (uint start = begin / QUERIES * QUERIES; start < shape.queries; start += QUERIES) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            tl_units_load<TL_DEPTH_CONTIGUOUS, QUERIES, WIDTH, THREADS>(
                q_tile, queries + long(start) * shape.q.position, shape.q.position, 1, shape.queries - start, shape.width, index);
            tl_units_load<TL_DEPTH_CONTIGUOUS, QUERIES, WIDTH, THREADS>(
                g_tile, gradients + long(start) * shape.gradient.position, shape.gradient.position, 1, shape.queries - start,
                shape.width, index);
            tl_copies_end();
            tl_attend_lines<QUERIES, THREADS>(lines, shape, attended, batch, head, start, index);
            tl_copies_arrive<0>();
            threadgroup_barrier(mem_flags::mem_threadgroup);
            tl_units_clear(scores);
            tl_units_clear(products);
            tl_units_step<WIDTH, false, PITCH, false, PITCH>(scores, k_tile + side * ROWS * PITCH, q_tile);
            if (OF_KEY) tl_units_step<WIDTH, false, PITCH, false, PITCH>(products, v_tile + side * ROWS * PITCH, g_tile);
            slopes.head = head;
            slopes.query = start;
            slopes.whole = !ragged && start >= all && start + QUERIES <= shape.queries;
            tl_attend_slopes<true>(scores, products, strip, slopes, shape.scale, lane);
            if (OF_VALUE) tl_attend_product<PITCH>(of_value, scores, strip, g_tile);
            if (OF_KEY) tl_attend_product<PITCH>(of_key, products, strip, q_tile);
        }
    }
    tl_copies_end();
    tl_copies_arrive<0>();
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float* end = block + side * 8 * (WIDTH + 4);
    TlKeyOut<false, Attended> key = {&shape, &attended, batch, kv};
    if (OF_KEY) tl_units_finish(of_key, end, key, first + side * ROWS, 0, shape.keys, shape.width, lane);
    TlKeyOut<true, Attended> value = {&shape, &attended, batch, kv};
    if (OF_VALUE) tl_units_finish(of_value, end, value, first + side * ROWS, 0, shape.keys, shape.width, lane);
}
