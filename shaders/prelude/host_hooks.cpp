// What is linked to every kernel's library: the hooks that code compiled with -fsanitize=thread calls, which hand
// each access to the runtime, and conversions. Compiled once, without checks, behind host.h.

const TlRuntime* tl_runtime;

// The addresses between which this library lies: its constants are there.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;

extern "C" __attribute__((visibility("default"))) void tl_start(const TlRuntime* runtime, const void* image[2]) {
    tl_runtime = runtime;
    image[0] = &__ehdr_start;
    image[1] = &_end;
}

#define TL_ACCESS(P, BYTES, FLAGS) tl_runtime->access(P, BYTES, FLAGS, __builtin_return_address(0))
enum { TL_WRITES = 1, TL_ALIGNED = 2 };

extern "C" {
#define TL_HOOKS(BYTES)                                                                                  \
    void __tsan_read##BYTES(void* p) { TL_ACCESS(p, BYTES, TL_ALIGNED); }                                \
    void __tsan_write##BYTES(void* p) { TL_ACCESS(p, BYTES, TL_WRITES | TL_ALIGNED); }                   \
    void __tsan_volatile_read##BYTES(void* p) { TL_ACCESS(p, BYTES, TL_ALIGNED); }                       \
    void __tsan_volatile_write##BYTES(void* p) { TL_ACCESS(p, BYTES, TL_WRITES | TL_ALIGNED); }          \
    void __tsan_unaligned_read##BYTES(void* p) { TL_ACCESS(p, BYTES, 0); }                               \
    void __tsan_unaligned_write##BYTES(void* p) { TL_ACCESS(p, BYTES, TL_WRITES); }
TL_HOOKS(1) TL_HOOKS(2) TL_HOOKS(4) TL_HOOKS(8) TL_HOOKS(16)
void __tsan_read_range(void* p, ulong bytes) { TL_ACCESS(p, uint(bytes), 0); }
void __tsan_write_range(void* p, ulong bytes) { TL_ACCESS(p, uint(bytes), TL_WRITES); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void* __tsan_memset(void* to, int value, ulong bytes) {
    TL_ACCESS(to, uint(bytes), TL_WRITES);
    return __builtin_memset(to, value, bytes);
}
void* __tsan_memcpy(void* to, const void* from, ulong bytes) {
    TL_ACCESS(from, uint(bytes), 0);
    TL_ACCESS(to, uint(bytes), TL_WRITES);
    return __builtin_memcpy(to, from, bytes);
}
}

uint tl_half_to_float_bits(ushort h) {
    const uint sign = uint(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude > 0x7c00) return sign | 0x7fc00000 | (magnitude & 0x3ff) << 13;
    if (magnitude == 0x7c00) return sign | 0x7f800000;
    if (magnitude >= 0x400) return sign | ((magnitude << 13) + 0x38000000);
    return sign | as_type<uint>(float(magnitude) * 0x1p-24f);
}

ushort tl_half_from_float(float x) {
    const uint bits = as_type<uint>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return ushort(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x47800000) return ushort(sign | 0x7c00);
    if (magnitude >= 0x38800000) {
        const uint half_bits = magnitude - 0x38000000;
        return ushort(sign | (half_bits + 0xfff + (half_bits >> 13 & 1)) >> 13);
    }
    // Added to a half, the unit of the last place is that of half's subnormal numbers.
    return ushort(sign | (as_type<uint>(as_type<float>(magnitude) + 0.5f) - 0x3f000000));
}

ushort tl_bfloat_from_float(float x) {
    const uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return ushort(bits >> 16 | 0x40);
    return ushort((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
