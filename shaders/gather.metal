// Indices that are read from memory. The first to find one out of range reports it: `fault` holds a word
// that is set, the index in two words, and the tag of the check; the host reads it with the next results.

// Whether the index is one to read at; a thread that is not active reads nothing.
inline bool tl_fault_in_range(long index, long limit, bool active, device atomic_uint* fault, uint tag) {
    if (!active) return false;
    if (index >= 0 && index < limit) return true;
    if (atomic_exchange_explicit(&fault[0], 1u, memory_order_relaxed) == 0) {
        atomic_store_explicit(&fault[3], tag, memory_order_relaxed);
        atomic_store_explicit(&fault[1], uint(ulong(index)), memory_order_relaxed);
        atomic_store_explicit(&fault[2], uint(ulong(index) >> 32), memory_order_relaxed);
    }
    return false;
}
