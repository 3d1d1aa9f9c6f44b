// Random numbers by counter, as in src/ops/math.rs and src/device/cpu/tile.rs: element `at` of the stream `key` is
// the same number on every device. Only integer operations and f32 products, sums and one square root, each rounded
// once and never contracted, in the order of the Rust text.

// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011).
inline uint4 tl_philox(uint4 counter, uint2 key) {
    uint c0 = counter.x, c1 = counter.y, c2 = counter.z, c3 = counter.w, k0 = key.x, k1 = key.y;
    for (uint round = 0; round < 10; round++) {
        uint high0 = mulhi(0xd2511f53u, c0), low0 = 0xd2511f53u * c0;
        uint high1 = mulhi(0xcd9e8d57u, c2), low1 = 0xcd9e8d57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return uint4(c0, c1, c2, c3);
}

// The two words of the block that element `at` is made of.
inline uint2 tl_random_words(ulong key, ulong at, uint stream) {
    ulong block = at >> 2;
    uint4 words = tl_philox(uint4(uint(block), uint(block >> 32), stream, 0), uint2(uint(key), uint(key >> 32)));
    return (at & 2) == 0 ? uint2(words.x, words.y) : uint2(words.z, words.w);
}

// In [0, 1).
inline float tl_random_uniform(ulong key, ulong at) {
    uint2 words = tl_random_words(key, at, 0);
    uint word = (at & 1) == 0 ? words.x : words.y;
    return float(word >> 8) * (1.0f / 16777216.0f);
}

// ln u for the u in (0, 1] of Box and Muller.
inline float tl_random_log(float u) {
    uint exponent = (as_type<uint>(u) - 0x3f3504f3u) & 0xff800000u;
    float k = float(as_type<int>(exponent) >> 23);
    float f = as_type<float>(as_type<uint>(u) - exponent) - 1.0f;
    float z = f * f;
    float odd = ((-0.0763631836f * z + -0.131605014f) * z + -0.166233018f) * z + -0.250008225f;
    float even = ((0.127636582f * z + 0.142015040f) * z + 0.200012356f) * z + 0.333333313f;
    float tail = f * z * (odd * f + even) - 0.5f * z;
    return k * 0.693359375f + (k * -2.12194440e-4f + tail + f);
}

// Standard normal: the cosine's number of a pair is the even element, the sine's the odd one.
inline float tl_random_normal(ulong key, ulong at) {
    uint2 words = tl_random_words(key, at, 1);
    float radius = sqrt(tl_random_log(float((words.x >> 8) + 1) * (1.0f / 16777216.0f)) * -2.0f);
    // The nearest quarter turn, and what is left: at most an eighth either way.
    uint quarter = (words.y + (1u << 29)) >> 30;
    float r = float(as_type<int>(words.y - (quarter << 30))) * (1.0f / 4294967296.0f);
    float z = r * r;
    float s = r * (((-75.3935623f * z + 81.5923538f) * z + -41.3416634f) * z + 6.28318530718f);
    float c = ((-83.6179123f * z + 64.9222107f) * z + -19.7391624f) * z + 1.0f;
    bool sine = (at & 1) != 0;
    // Odd quarters swap the two; sine is negative in quarters 2 and 3, cosine in 1 and 2.
    float value = sine == ((quarter & 1) != 0) ? c : s;
    uint sign = ((sine ? quarter : quarter + 1) & 2) << 30;
    return radius * as_type<float>(as_type<uint>(value) ^ sign);
}
