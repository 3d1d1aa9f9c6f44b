// Scaled dot product attention by matrix units: half and bfloat heads that lie as products want them.
//
// A group has a block of queries of one head, ROWS a simdgroup, and goes through the keys, KEYS at a time. Scores become
// weights where they are: in the strip of threadgroup memory that each simdgroup has, or, where it is known which lane
// holds which element (shaders/prelude/cuda_attention.h), in registers. What was summed so far shrinks when a larger score
// comes (Dao 2023, "FlashAttention-2", algorithm 1). Scores are kept times log2(e).
//
// `Attended` is as in attention.metal.

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

    float operator()(uint row, uint column, float score) const {
        if (whole) return fma(attended->mask(batch, head, query + row, key + column), 1.44269504f, score * scale);
        bool seen = query + row < shape->queries && key + column < tl_attention_visible(*shape, query + row);
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
