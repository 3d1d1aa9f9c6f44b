// Scaled dot product attention and its gradients, for heads of any width up to 256, operands of any strides and dtype.
//
// A group has one query (for the gradients of keys and values: one key) of one head. Its simdgroups take turns along
// the other side; the lanes of a simdgroup share the width, so that a product is a sum over lanes. What the simdgroups
// found is put together at the end, in order: results are the same in every run.
//
// Kernels say with a struct what they have beside q, k and v; `at` counts elements of the result:
//
//     struct Attended {
//         float mask(uint batch, uint head, uint query, uint key) const;      // 0 without one
//         float gradient(uint batch, uint head, uint query, uint w) const;    // for gradients: of the output,
//         float sum(uint batch, uint head, uint query) const;                 // the forward pass's sums,
//         float product(uint batch, uint head, uint query) const;             // and output times gradient, summed
//         void output(ulong at, float x) const;                               // and what is computed:
//         void sums(ulong at, float x) const;
//         void query(ulong at, float x) const;
//         void key(ulong at, float x) const;
//         void value(ulong at, float x) const;
//     };

#define TL_ATTENTION_SIDES 8 // simdgroups of a group
#define TL_ATTENTION_THREADS (32 * TL_ATTENTION_SIDES)
#define TL_ATTENTION_BLOCK(EACH) (TL_ATTENTION_SIDES * (2 * 32 * (EACH) + 2))

// Strides in elements.
struct TlAttentionSide {
    long batch, position, head, width;
};

struct TlAttention {
    TlAttentionSide q, k, v;
    uint heads, shared, queries, keys, width; // `shared` heads have the same keys
    float scale;
    uint causal, heads_first; // results, but for the sums, lie head by head
};

// The row of a result, of so many positions and heads.
inline ulong tl_attention_place(constant TlAttention& shape, uint batch, uint position, uint head, uint positions, uint heads) {
    return shape.heads_first ? (ulong(batch) * heads + head) * positions + position
                             : (ulong(batch) * positions + position) * heads + head;
}

// Keys that a query sees.
inline uint tl_attention_visible(constant TlAttention& shape, uint query) {
    if (!shape.causal) return shape.keys;
    uint end = query + 1 + shape.keys;
    return end > shape.queries ? end - shape.queries : 0;
}

// A row of an operand, 32 elements apart from lane to lane; zeros beyond the width.
template <uint EACH, typename T>
void tl_attention_row(thread float* x, device const T* from, constant TlAttentionSide& side, uint batch, uint position,
                      uint head, uint width, uint lane) {
    device const T* row = from + (long(batch) * side.batch + long(position) * side.position + long(head) * side.head);
    for (uint i = 0; i < EACH; i++) x[i] = lane + 32 * i < width ? float(row[long(lane + 32 * i) * side.width]) : 0.0f;
}

template <uint EACH> float tl_attention_dot(thread const float* a, thread const float* b) {
    float sum = 0.0f;
    for (uint i = 0; i < EACH; i++) sum = fma(a[i], b[i], sum);
    // In an order that gives all lanes the same bits.
    for (uint mask = 16; mask > 0; mask /= 2) sum += simd_shuffle_xor(sum, ushort(mask));
    return sum;
}

// The output of a query, and its sum.
template <uint EACH, typename T, typename Attended>
void tl_attention_forward(device const T* q, device const T* k, device const T* v, constant TlAttention& shape,
                          threadgroup float* block, thread const Attended& attended, uint3 group, uint index) {
    uint lane = index % 32, side = index / 32;
    uint query = group.x % shape.queries, head = group.x / shape.queries % shape.heads;
    uint batch = group.x / shape.queries / shape.heads, kv = head / shape.shared;
    float x[EACH], y[EACH], out[EACH];
    tl_attention_row<EACH>(x, q, shape.q, batch, query, head, shape.width, lane);
    for (uint i = 0; i < EACH; i++) out[i] = 0.0f;
    float most = -INFINITY, sum = 0.0f;
    uint visible = tl_attention_visible(shape, query);
    for (uint key = side; key < visible; key += TL_ATTENTION_SIDES) {
        tl_attention_row<EACH>(y, k, shape.k, batch, key, kv, shape.width, lane);
        float score = tl_attention_dot<EACH>(x, y) * shape.scale + attended.mask(batch, head, query, key);
        float next = score > most ? score : most, base = next == -INFINITY ? 0.0f : next;
        float shrink = exp(most - base), weight = exp(score - base);
        most = next;
        sum = sum * shrink + weight;
        tl_attention_row<EACH>(y, v, shape.v, batch, key, kv, shape.width, lane);
        for (uint i = 0; i < EACH; i++) out[i] = fma(out[i], shrink, weight * y[i]);
    }
    const uint PITCH = 32 * EACH + 2;
    for (uint i = 0; i < EACH; i++) block[side * PITCH + lane + 32 * i] = out[i];
    if (lane == 0) {
        block[side * PITCH + 32 * EACH] = most;
        block[side * PITCH + 32 * EACH + 1] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (side > 0) return;
    for (uint s = 1; s < TL_ATTENTION_SIDES; s++) {
        float other = block[s * PITCH + 32 * EACH];
        most = other > most ? other : most;
    }
    float base = most == -INFINITY ? 0.0f : most;
    sum = 0.0f;
    for (uint i = 0; i < EACH; i++) out[i] = 0.0f;
    for (uint s = 0; s < TL_ATTENTION_SIDES; s++) {
        float shrink = exp(block[s * PITCH + 32 * EACH] - base);
        sum = fma(block[s * PITCH + 32 * EACH + 1], shrink, sum);
        for (uint i = 0; i < EACH; i++) out[i] = fma(block[s * PITCH + lane + 32 * i], shrink, out[i]);
    }
    ulong place = tl_attention_place(shape, batch, query, head, shape.queries, shape.heads);
    float divisor = sum == 0.0f ? 1.0f : sum;
    for (uint i = 0; i < EACH; i++)
        if (lane + 32 * i < shape.width) attended.output(place * shape.width + lane + 32 * i, out[i] / divisor);
    if (lane == 0) attended.sums((ulong(batch) * shape.queries + query) * shape.heads + head, most + log(sum));
}

// The weight of a key for a query, and the gradient of its score.
template <uint EACH, typename Attended>
float2 tl_attention_slope(thread const float* q, thread const float* k, thread const float* v, thread const float* g,
                          float sum, float product, constant TlAttention& shape, thread const Attended& attended, uint batch,
                          uint head, uint query, uint key) {
    float score = tl_attention_dot<EACH>(q, k) * shape.scale + attended.mask(batch, head, query, key);
    float weight = sum == -INFINITY ? 0.0f : exp(score - sum);
    return float2(weight, weight * (tl_attention_dot<EACH>(g, v) - product) * shape.scale);
}

template <uint EACH, typename Attended>
void tl_attention_gradient(thread float* g, thread const Attended& attended, uint batch, uint head, uint query, uint width,
                           uint lane) {
    for (uint i = 0; i < EACH; i++)
        g[i] = lane + 32 * i < width ? attended.gradient(batch, head, query, lane + 32 * i) : 0.0f;
}

// Adds what the simdgroups have; the first one has the result.
template <uint EACH> void tl_attention_add(thread float* x, threadgroup float* block, uint side, uint lane) {
    for (uint i = 0; i < EACH; i++) block[(side * EACH + i) * 32 + lane] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (side > 0) return;
    for (uint s = 1; s < TL_ATTENTION_SIDES; s++)
        for (uint i = 0; i < EACH; i++) x[i] += block[(s * EACH + i) * 32 + lane];
}

// The gradient of a query.
template <uint EACH, typename T, typename Attended>
void tl_attention_queries(device const T* q, device const T* k, device const T* v, constant TlAttention& shape,
                          threadgroup float* block, thread const Attended& attended, uint3 group, uint index) {
    uint lane = index % 32, side = index / 32;
    uint query = group.x % shape.queries, head = group.x / shape.queries % shape.heads;
    uint batch = group.x / shape.queries / shape.heads, kv = head / shape.shared;
    float x[EACH], g[EACH], y[EACH], z[EACH], out[EACH];
    tl_attention_row<EACH>(x, q, shape.q, batch, query, head, shape.width, lane);
    tl_attention_gradient<EACH>(g, attended, batch, head, query, shape.width, lane);
    for (uint i = 0; i < EACH; i++) out[i] = 0.0f;
    float sum = attended.sum(batch, head, query), product = attended.product(batch, head, query);
    uint visible = tl_attention_visible(shape, query);
    for (uint key = side; key < visible; key += TL_ATTENTION_SIDES) {
        tl_attention_row<EACH>(y, k, shape.k, batch, key, kv, shape.width, lane);
        tl_attention_row<EACH>(z, v, shape.v, batch, key, kv, shape.width, lane);
        float slope = tl_attention_slope<EACH>(x, y, z, g, sum, product, shape, attended, batch, head, query, key).y;
        for (uint i = 0; i < EACH; i++) out[i] = fma(slope, y[i], out[i]);
    }
    tl_attention_add<EACH>(out, block, side, lane);
    if (side > 0) return;
    ulong place = tl_attention_place(shape, batch, query, head, shape.queries, shape.heads) * shape.width;
    for (uint i = 0; i < EACH; i++)
        if (lane + 32 * i < shape.width) attended.query(place + lane + 32 * i, out[i]);
}

// The gradients of a key and its value.
template <uint EACH, typename T, typename Attended>
void tl_attention_keys(device const T* q, device const T* k, device const T* v, constant TlAttention& shape,
                       threadgroup float* block, thread const Attended& attended, uint3 group, uint index) {
    uint lane = index % 32, side = index / 32;
    uint kv_heads = shape.heads / shape.shared;
    uint key = group.x % shape.keys, kv = group.x / shape.keys % kv_heads, batch = group.x / shape.keys / kv_heads;
    float x[EACH], g[EACH], y[EACH], z[EACH], of_key[EACH], of_value[EACH];
    tl_attention_row<EACH>(y, k, shape.k, batch, key, kv, shape.width, lane);
    tl_attention_row<EACH>(z, v, shape.v, batch, key, kv, shape.width, lane);
    for (uint i = 0; i < EACH; i++) of_key[i] = of_value[i] = 0.0f;
    // The queries that see it are the last ones.
    uint first = shape.causal && key + shape.queries > shape.keys ? key + shape.queries - shape.keys : 0;
    uint count = shape.queries - min(first, shape.queries);
    for (uint at = side; at < count * shape.shared; at += TL_ATTENTION_SIDES) {
        uint head = kv * shape.shared + at / count, query = first + at % count;
        tl_attention_row<EACH>(x, q, shape.q, batch, query, head, shape.width, lane);
        tl_attention_gradient<EACH>(g, attended, batch, head, query, shape.width, lane);
        float sum = attended.sum(batch, head, query), product = attended.product(batch, head, query);
        float2 slope = tl_attention_slope<EACH>(x, y, z, g, sum, product, shape, attended, batch, head, query, key);
        for (uint i = 0; i < EACH; i++) {
            of_value[i] = fma(slope.x, g[i], of_value[i]);
            of_key[i] = fma(slope.y, x[i], of_key[i]);
        }
    }
    tl_attention_add<EACH>(of_key, block, side, lane);
    tl_attention_add<EACH>(of_value, block + TL_ATTENTION_THREADS * EACH, side, lane);
    if (side > 0) return;
    ulong place = tl_attention_place(shape, batch, key, kv, shape.keys, kv_heads) * shape.width;
    for (uint i = 0; i < EACH; i++) {
        if (lane + 32 * i >= shape.width) continue;
        attended.key(place + lane + 32 * i, of_key[i]);
        attended.value(place + lane + 32 * i, of_value[i]);
    }
}
