// What gathers become in a backward pass: sums by index, without atomics and in the order of the terms.
//
// For one slice of the loops outside, where source is [terms, columns] and index is [terms]:
//     sum[row, column] = the sum of source[t, column] over t, ascending, with index[t] == row; 0 where there is none
// and epilogue(row, column, sum) is called once for each element, as in shaders/matmul.metal. An index that is no row
// adds to nothing; the caller reports it.
//
// Threads of a group: TL_SCATTER_THREADS; grid: x rows, y columns / (TL_SCATTER_THREADS * EACH) rounded up, z the loops
// outside; threadgroup memory: uint[TL_SCATTER_WORDS]. Each group reads all of the index: rows * terms in all, which
// suits few terms or few rows. Where both are many (tables of embeddings), terms are sorted by their rows first, in
// chunks of CHUNK, a power of two: a key is row * CHUNK + place in the chunk, all bits set where there is no term or no
// such row. Then a group has one place of the sorted keys, and does something if its row appears there first.

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

// Threads of a group: THREADS, a power of two; grid: chunks; threadgroup memory: uint[CHUNK]. Bitonic (Batcher 1968).
template <uint CHUNK, uint THREADS, typename Index>
void tl_scatter_sort(device const Index* by, constant TlScatter& shape, uint limit, device uint* sorted, threadgroup uint* keys,
                     uint3 group, uint index) {
    for (uint i = index; i < CHUNK; i += THREADS) {
        uint term = group.x * CHUNK + i;
        long row = term < shape.terms ? long(by[long(term) * shape.index_term]) : -1;
        keys[i] = row >= 0 && row < long(limit) ? uint(row) * CHUNK + i : 0xffffffffu;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint size = 2; size <= CHUNK; size *= 2)
        for (uint step = size / 2; step > 0; step /= 2) {
            for (uint pair = index; pair < CHUNK / 2; pair += THREADS) {
                uint low = 2 * pair - (pair & (step - 1)), high = low + step;
                uint a = keys[low], b = keys[high];
                if ((a > b) == ((low & size) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
    for (uint i = index; i < CHUNK; i += THREADS) sorted[group.x * CHUNK + i] = keys[i];
}

// The first place of a chunk whose key is not below `key`.
template <uint CHUNK> uint tl_scatter_find(device const uint* sorted, uint key) {
    uint low = 0, high = CHUNK;
    while (low < high) {
        uint middle = (low + high) / 2;
        if (sorted[middle] < key) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Grid: x places of the sorted keys, y as above. Rows without terms are not written.
template <uint CHUNK, typename T, typename Acc, uint EACH, typename Epilogue>
void tl_scatter_sorted(device const T* source, device const uint* sorted, constant TlScatter& shape,
                       thread const Epilogue& epilogue, uint3 group, uint index) {
    uint own = group.x / CHUNK, place = group.x % CHUNK, key = sorted[group.x], row = key / CHUNK;
    if (key == 0xffffffffu || (place > 0 && sorted[group.x - 1] / CHUNK == row)) return;
    for (uint chunk = 0; chunk < own; chunk++) {
        uint before = tl_scatter_find<CHUNK>(sorted + chunk * CHUNK, row * CHUNK);
        if (before < CHUNK && sorted[chunk * CHUNK + before] / CHUNK == row) return;
    }
    uint first = group.y * TL_SCATTER_THREADS * EACH + index;
    Acc sums[EACH];
    for (uint i = 0; i < EACH; i++) sums[i] = Acc(0);
    for (uint chunk = own; chunk * CHUNK < shape.terms; chunk++) {
        device const uint* keys = sorted + chunk * CHUNK;
        uint begin = chunk == own ? place : tl_scatter_find<CHUNK>(keys, row * CHUNK);
        uint end = tl_scatter_find<CHUNK>(keys, (row + 1) * CHUNK);
        for (uint at = begin; at < end; at++) {
            device const T* from = source + long(chunk * CHUNK + keys[at] % CHUNK) * shape.source_term;
            for (uint i = 0; i < EACH; i++) {
                uint column = first + i * TL_SCATTER_THREADS;
                if (column < shape.columns) sums[i] = tl_add(sums[i], Acc(from[long(column) * shape.source_column]));
            }
        }
    }
    for (uint i = 0; i < EACH; i++) {
        uint column = first + i * TL_SCATTER_THREADS;
        if (column < shape.columns) epilogue(row, column, sums[i]);
    }
}
