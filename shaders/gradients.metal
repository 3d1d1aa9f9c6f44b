// What gathers become in a backward pass: sums by index, without atomics and in the order of the terms.
//
// For one slice of the loops outside, where source is [terms, columns] and index is [terms]:
//     sum[row, column] = the sum of source[t, column] over t, ascending, with index[t] == row; 0 where there is none
// and epilogue(row, column, sum) is called once for each element, as in shaders/matmul.metal. An index that is no row
// adds to nothing; the caller reports it.
//
// Threads of a group: TL_SCATTER_THREADS; grid: x rows, y columns / (TL_SCATTER_THREADS * EACH) rounded up, z the loops
// outside; threadgroup memory: uint[TL_SCATTER_WORDS]. Each group reads all of the index: rows * terms in all, which
// suits few terms or wide rows (tables of embeddings), not a million of each.

struct TlScatter {
    long source_term, source_column, index_term; // strides, in elements
    uint terms, columns;
};

#define TL_SCATTER_THREADS 256
// A bit for each term of a round.
#define TL_SCATTER_WORDS 32

// A thread has EACH columns: 1 for up to 256, 4 for 1024 and more. Acc is float, or an integer type, whose sums wrap.
template <typename T, typename Acc, typename Index, uint EACH, typename Epilogue>
void tl_scatter_rows(device const T* source, device const Index* by, constant TlScatter& shape, threadgroup uint* matches,
                     thread const Epilogue& epilogue, uint3 group, uint index) {
    uint row = group.x, first = group.y * TL_SCATTER_THREADS * EACH + index;
    Acc sums[EACH];
    for (uint i = 0; i < EACH; i++) sums[i] = Acc(0);
    for (uint start = 0; start < shape.terms; start += 32 * TL_SCATTER_WORDS) {
        for (uint at = index; at < 32 * TL_SCATTER_WORDS; at += TL_SCATTER_THREADS) {
            uint term = start + at;
            uint votes = tl_ballot(term < shape.terms && long(by[term < shape.terms ? long(term) * shape.index_term : 0]) == long(row));
            if (index % 32 == 0) matches[at / 32] = votes;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint word = 0; word < TL_SCATTER_WORDS; word++) {
            for (uint bits = matches[word]; bits != 0; bits &= bits - 1) {
                device const T* from = source + long(start + word * 32 + ctz(bits)) * shape.source_term;
                for (uint i = 0; i < EACH; i++) {
                    uint column = first + i * TL_SCATTER_THREADS;
                    if (column < shape.columns) sums[i] = tl_add(sums[i], Acc(from[long(column) * shape.source_column]));
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (uint i = 0; i < EACH; i++) {
        uint column = first + i * TL_SCATTER_THREADS;
        if (column < shape.columns) epilogue(row, column, sums[i]);
    }
}
