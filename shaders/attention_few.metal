// Scaled dot product attention of few queries over many keys, as decoders have it: half and bfloat heads, read in pieces of
// 16 bytes, once for all queries of the heads that share keys.
//
// LANES lanes share a key, 8 elements of its width each; so a simdgroup has several keys at a time, and TL_FEW_UNROLL times
// as many on their way. Each of these slots sums for itself, with a largest score of its own; at the end they are put
// together, in order. With SPLIT, groups share the keys, too: each leaves what it has of a row, and tl_attention_merge puts
// these together.
//
// Behind attention.metal.
// `Attended` is as there; with SPLIT it has `void part(ulong at, float x)`, for the scratch memory.

#define TL_FEW_SIDES 4 // simdgroups of a group
#define TL_FEW_THREADS (32 * TL_FEW_SIDES)
#define TL_FEW_UNROLL 4
// Threadgroup memory in floats: for each slot a row's sums.
#define TL_FEW_BLOCK(LANES) (TL_FEW_THREADS / (LANES) * (8 * (LANES) + 2))

template <typename T> void tl_few_widen(thread float* to, uint4 from) {
    thread const T* x = (thread const T*)&from;
    for (uint i = 0; i < 8; i++) to[i] = float(x[i]);
}

// Group x: (batch, kv head, chunk of R rows, split). A row is a query of one of the heads that share keys.
template <uint LANES, uint R, bool SPLIT, typename T, typename Attended>
void tl_attention_few(device const T* q, device const T* k, device const T* v, constant TlAttention& shape, uint splits,
                      threadgroup float* block, thread const Attended& attended, uint3 group, uint index) {
    const uint SLOTS = TL_FEW_THREADS / LANES, STEP = SLOTS * TL_FEW_UNROLL, PITCH = 8 * LANES + 2;
    uint segment = index % LANES, slot = index / LANES, at = segment * 8;
    uint rows = shape.queries * shape.shared, chunks = (rows + R - 1) / R, kv_heads = shape.heads / shape.shared;
    uint split = group.x % splits, chunk = group.x / splits % chunks;
    uint kv = group.x / splits / chunks % kv_heads, batch = group.x / splits / chunks / kv_heads;
    bool inside = at < shape.width;
    k += long(batch) * shape.k.batch + long(kv) * shape.k.head + at;
    v += long(batch) * shape.v.batch + long(kv) * shape.v.head + at;
    float x[R][8], out[R][8], most[R], sum[R];
    uint end[R], last = 0;
    for (uint r = 0; r < R; r++) {
        uint row = chunk * R + r, query = row % shape.queries, head = kv * shape.shared + row / shape.queries;
        bool real = row < rows;
        device const T* from = q + (long(batch) * shape.q.batch + long(query) * shape.q.position + long(head) * shape.q.head);
        for (uint i = 0; i < 8; i++) {
            x[r][i] = real && at + i < shape.width ? float(from[long(at + i) * shape.q.width]) * shape.scale * 1.44269504f : 0.0f;
            out[r][i] = 0.0f;
        }
        most[r] = -INFINITY;
        sum[r] = 0.0f;
        end[r] = real ? tl_attention_visible(shape, query) : 0;
        last = max(last, end[r]);
    }
    uint each = (shape.keys + splits * STEP - 1) / (splits * STEP) * STEP;
    uint stop = min((split + 1) * each, last);
    for (uint start = split * each; start < stop; start += STEP) {
        uint4 keys[TL_FEW_UNROLL], values[TL_FEW_UNROLL];
        for (uint u = 0; u < TL_FEW_UNROLL; u++) {
            uint key = start + u * SLOTS + slot;
            bool there = inside && key < stop;
            keys[u] = there ? *(device const uint4*)(k + long(key) * shape.k.position) : uint4(0, 0, 0, 0);
            values[u] = there ? *(device const uint4*)(v + long(key) * shape.v.position) : uint4(0, 0, 0, 0);
        }
        float score[R][TL_FEW_UNROLL];
        for (uint u = 0; u < TL_FEW_UNROLL; u++) {
            float y[8];
            tl_few_widen<T>(y, keys[u]);
            for (uint r = 0; r < R; r++) {
                float dot = 0.0f;
                for (uint i = 0; i < 8; i++) dot = fma(x[r][i], y[i], dot);
                for (uint mask = 1; mask < LANES; mask *= 2) dot += simd_shuffle_xor(dot, ushort(mask));
                uint key = start + u * SLOTS + slot, row = chunk * R + r;
                bool seen = key < min(end[r], stop);
                if (Attended::MASKED && seen)
                    dot = fma(attended.mask(batch, kv * shape.shared + row / shape.queries, row % shape.queries, key), 1.44269504f, dot);
                score[r][u] = seen ? dot : -INFINITY;
            }
        }
        for (uint r = 0; r < R; r++) {
            float next = most[r];
            for (uint u = 0; u < TL_FEW_UNROLL; u++) next = score[r][u] > next ? score[r][u] : next;
            float base = next == -INFINITY ? 0.0f : next, shrink = exp2(most[r] - base);
            most[r] = next;
            sum[r] *= shrink;
            for (uint i = 0; i < 8; i++) out[r][i] *= shrink;
            for (uint u = 0; u < TL_FEW_UNROLL; u++) {
                score[r][u] = exp2(score[r][u] - base);
                sum[r] += score[r][u];
            }
        }
        for (uint u = 0; u < TL_FEW_UNROLL; u++) {
            float y[8];
            tl_few_widen<T>(y, values[u]);
            for (uint r = 0; r < R; r++)
                for (uint i = 0; i < 8; i++) out[r][i] = fma(score[r][u], y[i], out[r][i]);
        }
    }
    for (uint r = 0; r < R; r++) {
        uint row = chunk * R + r, query = row % shape.queries, head = kv * shape.shared + row / shape.queries;
        if (row >= rows) break;
        threadgroup float* own = block + slot * PITCH;
        for (uint i = 0; i < 8; i++) own[at + i] = out[r][i];
        if (segment == 0) {
            own[8 * LANES] = most[r];
            own[8 * LANES + 1] = sum[r];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float largest = -INFINITY, total = 0.0f;
        for (uint s = 0; s < SLOTS; s++) {
            float other = block[s * PITCH + 8 * LANES];
            largest = other > largest ? other : largest;
        }
        float base = largest == -INFINITY ? 0.0f : largest;
        for (uint s = 0; s < SLOTS; s++)
            total = fma(block[s * PITCH + 8 * LANES + 1], exp2(block[s * PITCH + 8 * LANES] - base), total);
        ulong part = (((ulong(batch) * shape.heads + head) * shape.queries + query) * splits + split) * (shape.width + 2);
        ulong place = tl_attention_place(shape, batch, query, head, shape.queries, shape.heads) * shape.width;
        for (uint w = index; w < shape.width; w += TL_FEW_THREADS) {
            float y = 0.0f;
            for (uint s = 0; s < SLOTS; s++) y = fma(block[s * PITCH + w], exp2(block[s * PITCH + 8 * LANES] - base), y);
            if (SPLIT) attended.part(part + w, y);
            else attended.output(place + w, total == 0.0f ? y : y / total);
        }
        if (index == 0) {
            if (SPLIT) {
                attended.part(part + shape.width, largest);
                attended.part(part + shape.width + 1, total);
            } else {
                attended.sums((ulong(batch) * shape.queries + query) * shape.heads + head, fma(largest, 0.693147181f, log(total)));
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Puts together what the splits of a row have: a simdgroup a row.
template <typename Attended>
void tl_attention_merge(device const float* parts, constant TlAttention& shape, uint splits, uint all,
                        thread const Attended& attended, uint3 group, uint index) {
    uint row = group.x * TL_FEW_SIDES + index / 32, lane = index % 32;
    if (row >= all) return;
    uint query = row % shape.queries, head = row / shape.queries % shape.heads, batch = row / shape.queries / shape.heads;
    const uint pitch = shape.width + 2;
    parts += ulong(row) * splits * pitch;
    float largest = -INFINITY, total = 0.0f;
    for (uint s = 0; s < splits; s++) {
        float other = parts[s * pitch + shape.width];
        largest = other > largest ? other : largest;
    }
    float base = largest == -INFINITY ? 0.0f : largest;
    for (uint s = 0; s < splits; s++) total = fma(parts[s * pitch + shape.width + 1], exp2(parts[s * pitch + shape.width] - base), total);
    ulong place = tl_attention_place(shape, batch, query, head, shape.queries, shape.heads) * shape.width;
    for (uint w = lane; w < shape.width; w += 32) {
        float y = 0.0f;
        for (uint s = 0; s < splits; s++) y = fma(parts[s * pitch + w], exp2(parts[s * pitch + shape.width] - base), y);
        attended.output(place + w, total == 0.0f ? y : y / total);
    }
    if (lane == 0) attended.sums((ulong(batch) * shape.queries + query) * shape.heads + head, fma(largest, 0.693147181f, log(total)));
}
