// simdgroup_matrix as the other preludes have it: a lane holds two neighbours of a row. Which ones is theirs to say.

template <class T, int COLUMNS, int ROWS> struct simdgroup_matrix {
    static_assert(COLUMNS == 8 && ROWS == 8, "matrices are 8 by 8");
    T elements[2];
    T* thread_elements() { return elements; }
};
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;

template <class T, int COLUMNS, int ROWS> inline simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T x) {
    return {{x, x}};
}
