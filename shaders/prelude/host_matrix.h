// simdgroup_matrix for host C++, behind host.h: a lane holds two neighbours of a row, as on Apple's chips up to the M4
// (kernels must not know), and a product exchanges them all.

// Where a lane's first element is, and the lane of an element.
inline uint tl_matrix_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline uint tl_matrix_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }
inline uint tl_matrix_lane(uint row, uint column) { return ((row & 4) | (column >> 1 & 2)) * 4 + row % 4 * 2 + (column >> 1 & 1); }

template <class T>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& to, const T* from, ulong row_elements = 8, ulong2 = ulong2(0, 0),
                           bool transpose = false) {
    uint lane = tl_lane(), row = tl_matrix_row(lane), column = tl_matrix_column(lane);
    for (uint i = 0; i < 2; i++)
        to.elements[i] = from[transpose ? (column + i) * row_elements + row : row * row_elements + column + i];
}

template <class T>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& from, T* to, ulong row_elements = 8, ulong2 = ulong2(0, 0),
                            bool transpose = false) {
    uint lane = tl_lane(), row = tl_matrix_row(lane), column = tl_matrix_column(lane);
    for (uint i = 0; i < 2; i++)
        to[transpose ? (column + i) * row_elements + row : row * row_elements + column + i] = from.elements[i];
}

// out = a b + c, with sums in order of k.
template <class T>
TL_PLAIN void simdgroup_multiply_accumulate(simdgroup_float8x8& out, const simdgroup_matrix<T, 8, 8>& a,
                                            const simdgroup_matrix<T, 8, 8>& b, const simdgroup_float8x8& c,
                                            int line = __builtin_LINE()) {
    struct alignas(16) Operands {
        T a[2], b[2];
    };
    Operands mine = {{a.elements[0], a.elements[1]}, {b.elements[0], b.elements[1]}};
    const Operands* all = (const Operands*)tl_exchange(&mine, sizeof mine, line);
    uint lane = tl_lane(), row = tl_matrix_row(lane), column = tl_matrix_column(lane);
    float sums[2] = {c.elements[0], c.elements[1]};
    for (uint k = 0; k < 8; k++) {
        float left = float(all[tl_matrix_lane(row, k)].a[k % 2]);
        const Operands& right = all[tl_matrix_lane(k, column)];
        for (uint i = 0; i < 2; i++) sums[i] += left * float(right.b[i]);
    }
    out = {{sums[0], sums[1]}};
}
