// What shaders/attention_units.metal does with scores, in registers: behind cuda_matrix.h. A lane holds elements of the rows
// lane / 4 and lane / 4 + 8 of each 16; four lanes share a row.

// Threadgroup memory that the dispatch brings.
#define TL_DISPATCH_BLOCK(NAME) extern __shared__ __align__(16) float NAME[]

template <uint M> struct TlAttending {
    float most[M / 8], sum[M / 8];
};

template <uint KEYS, uint M> inline void tl_attend_clear(TlAttending<M>& state, float*, uint) {
    #pragma unroll
    for (uint r = 0; r < M / 8; r++) {
        state.most[r] = -INFINITY;
        state.sum[r] = 0.0f;
    }
}

template <typename T, uint M, uint KEYS, uint N, typename Sight>
inline void tl_attend_soften(TlUnits<M, KEYS>& scores, TlAttending<M>& state, TlUnits<M, N>& out, float*, const Sight& sight,
                             uint lane) {
    // Scores that are only scaled are scaled on the way to their weights.
    bool plain = sight.plain();
    float scale = plain ? sight.scale : 1.0f;
    if (!plain) {
        #pragma unroll
        for (uint r = 0; r < M / 8; r++)
            #pragma unroll
            for (uint j = 0; j < KEYS / 8; j++)
                #pragma unroll
                for (uint e = 0; e < 2; e++) {
                    float& x = scores.sums[r / 2][j][r % 2 * 2 + e];
                    x = sight(r * 8 + lane / 4, j * 8 + lane % 4 * 2 + e, x);
                }
    }
    #pragma unroll
    for (uint r = 0; r < M / 8; r++) {
        float most = -INFINITY;
        #pragma unroll
        for (uint j = 0; j < KEYS / 8; j++)
            #pragma unroll
            for (uint e = 0; e < 2; e++) most = fmaxf(most, scores.sums[r / 2][j][r % 2 * 2 + e]);
        #pragma unroll
        for (uint mask = 1; mask < 4; mask *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, mask));
        most = fmaxf(state.most[r], most * scale);
        float base = most == -INFINITY ? 0.0f : most, sum = 0.0f, shrink = tl_fast_exp2(state.most[r] - base);
        #pragma unroll
        for (uint j = 0; j < KEYS / 8; j++)
            #pragma unroll
            for (uint e = 0; e < 2; e++) {
                float& x = scores.sums[r / 2][j][r % 2 * 2 + e];
                x = tl_fast_exp2(fmaf(x, scale, -base));
                sum += x;
            }
        state.most[r] = most;
        state.sum[r] = fmaf(state.sum[r], shrink, sum);
        #pragma unroll
        for (uint j = 0; j < N / 8; j++)
            #pragma unroll
            for (uint e = 0; e < 2; e++) out.sums[r / 2][j][r % 2 * 2 + e] *= shrink;
    }
}

// A pair of floats as narrow ones in a register.
inline uint tl_narrow_pair(float low, float high, const half*) {
    uint pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

inline uint tl_narrow_pair(float low, float high, const bfloat*) {
    uint pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <uint PITCH, typename T, uint M, uint KEYS, uint N>
inline void tl_attend_add(TlUnits<M, N>& out, const TlUnits<M, KEYS>& scores, float*, const T* values) {
    uint near = tl_cuda_lane() % 16, far = tl_cuda_lane() / 16 * 8;
    #pragma unroll
    for (uint k = 0; k < KEYS; k += 16) {
        uint left[M / 16][4];
        #pragma unroll
        for (uint i = 0; i < M / 16; i++)
            #pragma unroll
            for (uint e = 0; e < 4; e++) {
                const float* pair = scores.sums[i][k / 8 + e / 2] + e % 2 * 2;
                left[i][e] = tl_narrow_pair(pair[0], pair[1], values);
            }
        #pragma unroll
        for (uint j = 0; j < N / 16; j++) {
            uint right[4];
            tl_load_matrices<true>(right, values + (k + near) * PITCH + j * 16 + far);
            #pragma unroll
            for (uint i = 0; i < M / 16; i++) {
                tl_multiply_16(out.sums[i][2 * j], left[i], right, values);
                tl_multiply_16(out.sums[i][2 * j + 1], left[i], right + 2, values);
            }
        }
    }
}

template <uint KEYS, uint M, uint N, typename Out>
inline void tl_attend_end(TlUnits<M, N>& out, const TlAttending<M>& state, float*, const Out& to, uint query, uint lane) {
    #pragma unroll
    for (uint r = 0; r < M / 8; r++) {
        float sum = state.sum[r];
        #pragma unroll
        for (uint mask = 1; mask < 4; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
        if (lane % 4 == 0) to.sum(query + r * 8 + lane / 4, state.most[r], sum);
        float factor = sum == 0.0f ? 1.0f : 1.0f / sum;
        #pragma unroll
        for (uint j = 0; j < N / 8; j++)
            #pragma unroll
            for (uint e = 0; e < 2; e++) out.sums[r / 2][j][r % 2 * 2 + e] *= factor;
    }
}

template <bool KEYS_ARE_ROWS, uint M, uint N, typename Slopes>
inline void tl_attend_slopes(TlUnits<M, N>& scores, TlUnits<M, N>& products, float*, const Slopes& slopes, float scale, uint lane) {
    #pragma unroll
    for (uint i = 0; i < M / 16; i++)
        #pragma unroll
        for (uint j = 0; j < N / 8; j++)
            #pragma unroll
            for (uint e = 0; e < 4; e++) {
                uint row = i * 16 + lane / 4 + e / 2 * 8, column = j * 8 + lane % 4 * 2 + e % 2;
                uint query = KEYS_ARE_ROWS ? column : row, key = KEYS_ARE_ROWS ? row : column;
                float& score = scores.sums[i][j][e];
                float& product = products.sums[i][j][e];
                score = tl_fast_exp2(fmaf(score, scale * 1.44269504f, slopes.bias(query, key)));
                product = score * (product - slopes.product(query)) * scale;
            }
}

template <uint PITCH, typename T, uint M, uint N, uint COLUMNS>
inline void tl_attend_product(TlUnits<M, COLUMNS>& out, const TlUnits<M, N>& sums, float* strip, const T* tile) {
    tl_attend_add<PITCH>(out, sums, strip, tile);
}
