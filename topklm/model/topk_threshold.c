/* TopK of many rows on a CPU, by an exact search for the k-th largest key; with the residual add before it, where there is one.
 *
 * Each float becomes an unsigned integer that sorts as the float does (NaN above everything, -0 equal to +0). The k-th largest key is
 * then bracketed: a pass over the keys counts how many reach each of three pivots, and the search ends as soon as exactly k keys reach
 * one, or the bracket holds a single key, at which values tie. Rows that follow each other have thresholds near each other, so the
 * first pivots lie around those of the rows before; where they miss, they move on by powers of four. Inside a bracket pivots are
 * interpolated, and every third pass quarters it, so that no distribution makes a search long. The rows before decide how long it
 * takes and never what it finds. A row stays in the L1 cache throughout, and every loop is plain enough for a compiler to vectorise
 * (conditions as masks: gcc makes no vector minimum of `key >= t ? key : max`). What the telemetry needs is counted on the way.
 *
 * With a bias the keys are those of float32 scores, value (or magnitude) + bias, whatever the type of x; what passes is x all the same.
 *
 * What was kept is a bit per entry: entry i of a row is bit i % 8 of byte i / 8, and each row begins with a byte of its own.
 *
 * With OpenMP the rows are split over threads, each with counters of its own; PyTorch's OpenMP runtime is the one in the process, so its
 * threads are used rather than new ones. Without OpenMP one thread does it all.
 */
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the packing of bits is written for little-endian processors"
#endif

static inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

/* The bits of a float for an element of either type, and of a float for either type: bfloat16 rounds to nearest, ties to even. */
static inline uint32_t load_float32(uint32_t v) { return v; }
static inline uint32_t load_bfloat16(uint16_t v) { return (uint32_t)v << 16; }
static inline uint16_t to_bfloat16(uint32_t bits) {
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

static inline uint32_t sort_key(uint32_t bits, int magnitude) {
    uint32_t abs_bits = bits & 0x7fffffffu;
    uint32_t key = magnitude ? abs_bits : ((bits >> 31) ? ~bits : (bits | 0x80000000u));
    if (!magnitude) key = abs_bits == 0 ? 0x80000000u : key; /* -0 ties with +0 */
    return abs_bits > 0x7f800000u ? 0xffffffffu : key;       /* NaN of either sign */
}

/* The value (or magnitude) of a key, whose lowest clear bits a type without them leaves clear. */
static inline float key_to_score(uint32_t key, int clear, int magnitude) {
    uint32_t used = 0xffffffffu << clear;
    if (key == used) return as_float(0x7fc00000u);
    if (magnitude) return as_float(key);
    return as_float((key >> 31) ? (key & 0x7fffffffu) : ~key & used);
}

/* The key of a biased score. */
static inline uint32_t biased_key(uint32_t bits, float bias, int magnitude) {
    return sort_key(as_bits(as_float(magnitude ? bits & 0x7fffffffu : bits) + bias), 0);
}

/* Where a search begins: a mean threshold of the rows before, how far apart keys lay there (0: no row came before), and by how many
 * ranks one row differs from another. */
typedef struct { int64_t t, gap, ranks; } Guess;

static int64_t root(int64_t n) {
    int64_t r = 1;
    while ((r + 1) * (r + 1) <= n) r++;
    return r;
}

/* A search over keys of type K, of which BITS are used.
 *
 * find_: the k-th largest key, or another t that the same keys reach (>= t).
 * flag_: 0/1 flags of what is kept: all above t, and of those equal to t the first ones, k in all. Returns the smallest kept key. */
#define DEFINE_SEARCH(K, BITS)                                                                                                \
    static K find_##BITS(const K *restrict keys, int64_t d, int64_t k, Guess *guess) {                                        \
        int64_t lo = 0, hi = (int64_t)((1ull << BITS) - 1); /* the bracket, both inclusive: what is looked for is in it */    \
        int64_t count_lo = d, count_hi = 0;                 /* keys that reach lo, and that lie beyond hi */                  \
        int lo_found = 0, hi_found = 0;                     /* whether a pivot gave this side */                              \
        int64_t around = guess->t, reach = guess->gap * guess->ranks;                                                         \
        for (int pass = 0; count_lo != k && lo < hi; pass++) {                                                                \
            int64_t low, middle, high;                                                                                        \
            if (hi_found && count_hi == k - 1) { /* one is missing: the largest that is left */                               \
                K largest = 0;                                                                                                \
                const K bound = (K)hi;                                                                                        \
                for (int64_t i = 0; i < d; i++) {                                                                             \
                    K key = keys[i] & (K)-(K)(keys[i] <= bound);                                                              \
                    largest = key > largest ? key : largest;                                                                  \
                }                                                                                                             \
                lo = largest;                                                                                                 \
                break;                                                                                                        \
            }                                                                                                                 \
            if (lo_found && hi_found && pass % 3 != 2) { /* as if the keys in between lay evenly */                           \
                int64_t inside = count_lo - count_hi;                                                                         \
                reach = (hi - lo) / inside * (1 + root(inside) / 4) + 1;                                                      \
                around = lo + (int64_t)((double)(hi - lo) * (2 * (count_lo - k) + 1) / (2 * inside));                         \
            }                                                                                                                 \
            if (!guess->gap || (lo_found && hi_found && pass % 3 == 2))                                                       \
                low = lo + 1 + (hi - lo) / 4, middle = lo + 1 + (hi - lo) / 2, high = lo + 1 + (hi - lo) / 4 * 3;             \
            else                                                                                                              \
                low = around - reach, middle = around, high = around + reach;                                                 \
            low = low <= lo ? lo + 1 : low > hi ? hi : low;                                                                   \
            middle = middle < low ? low : middle > hi ? hi : middle;                                                          \
            high = high < middle ? middle : high > hi ? hi : high;                                                            \
            const K a = (K)low, b = (K)middle, c = (K)high;                                                                   \
            int64_t reach_a = 0, reach_b = 0, reach_c = 0;                                                                    \
            for (int64_t first = 0; first < d; first += 32768) { /* so that counts fit into the type of the keys */           \
                int64_t last = first + 32768 < d ? first + 32768 : d;                                                         \
                K na = 0, nb = 0, nc = 0;                                                                                     \
                for (int64_t i = first; i < last; i++) na += keys[i] >= a, nb += keys[i] >= b, nc += keys[i] >= c;            \
                reach_a += na, reach_b += nb, reach_c += nc;                                                                  \
            }                                                                                                                 \
            if (reach_a >= k) lo = low, count_lo = reach_a;                                                                   \
            if (reach_b >= k) lo = middle, count_lo = reach_b;                                                                \
            if (reach_c >= k) lo = high, count_lo = reach_c;                                                                  \
            if (reach_c < k) hi = high - 1, count_hi = reach_c;                                                               \
            if (reach_b < k) hi = middle - 1, count_hi = reach_b;                                                             \
            if (reach_a < k) hi = low - 1, count_hi = reach_a;                                                                \
            lo_found |= reach_a >= k, hi_found |= reach_c < k;                                                                \
            reach *= 4; /* where the search still looks for a side */                                                         \
            around = hi_found ? hi - reach : lo + reach;                                                                      \
        }                                                                                                                     \
        int64_t moved = guess->gap ? (lo - guess->t) / 4 : lo;                                                                \
        guess->t = guess->gap ? guess->t + moved : lo;                                                                        \
        if (lo_found && hi_found) guess->gap = (hi - lo) / (count_lo - count_hi) + 1;                                         \
        return (K)lo;                                                                                                         \
    }                                                                                                                         \
    static K flag_##BITS(const K *restrict keys, uint8_t *restrict kept, int64_t d, int64_t k, K t) {                         \
        K smallest = (K)-1;                                                                                                   \
        for (int64_t i = 0; i < d; i++) {                                                                                     \
            K kept_key = keys[i] | (K)-(K)(keys[i] < t);                                                                      \
            smallest = kept_key < smallest ? kept_key : smallest;                                                             \
        }                                                                                                                     \
        for (int64_t i = 0; i < d; i++) kept[i] = keys[i] >= t;                                                               \
        int64_t excess = -k;                                                                                                  \
        for (int64_t first = 0; first < d; first += 32768) {                                                                  \
            int64_t last = first + 32768 < d ? first + 32768 : d;                                                             \
            K n = 0;                                                                                                          \
            for (int64_t i = first; i < last; i++) n += keys[i] >= t;                                                         \
            excess += n;                                                                                                      \
        }                                                                                                                     \
        for (int64_t i = d - 1; excess > 0; i--) /* ties: the last of them go */                                              \
            if (keys[i] == t) kept[i] = 0, excess--;                                                                          \
        return smallest;                                                                                                      \
    }

DEFINE_SEARCH(uint32_t, 32)
DEFINE_SEARCH(uint16_t, 16)

/* Eight 0/1 bytes become the bits of one: byte j of the product's top byte's sum is bit j. */
static void pack(const uint8_t *restrict kept, uint8_t *restrict bits, int64_t d) {
    int64_t whole = d / 8;
    for (int64_t b = 0; b < whole; b++) {
        uint64_t eight;
        memcpy(&eight, kept + 8 * b, 8);
        bits[b] = (uint8_t)((eight * 0x0102040810204080ull) >> 56);
    }
    if (d % 8) bits[whole] = 0;
    for (int64_t i = 8 * whole; i < d; i++) bits[whole] |= (uint8_t)(kept[i] << (i % 8));
}

/* Which thread of how many this is. */
static inline void my_rows(int64_t n, int64_t *thread, int64_t *first, int64_t *last) {
    int64_t of = 1;
    *thread = 0;
#ifdef _OPENMP
    *thread = omp_get_thread_num();
    of = omp_get_num_threads();
#endif
    *first = n * *thread / of;
    *last = n * (*thread + 1) / of;
}

/* A row of x + added, rounded once to the wider of their types. */
static void add_float32(const void *x, const void *added, int narrow_x, int narrow_added, uint32_t *restrict out, int64_t row, int64_t d) {
    const uint32_t *xw = (const uint32_t *)x + row * d, *aw = (const uint32_t *)added + row * d;
    const uint16_t *xn = (const uint16_t *)x + row * d, *an = (const uint16_t *)added + row * d;
    if (narrow_added)
        for (int64_t i = 0; i < d; i++) out[i] = as_bits(as_float(xw[i]) + as_float(load_bfloat16(an[i])));
    else if (narrow_x)
        for (int64_t i = 0; i < d; i++) out[i] = as_bits(as_float(load_bfloat16(xn[i])) + as_float(aw[i]));
    else
        for (int64_t i = 0; i < d; i++) out[i] = as_bits(as_float(xw[i]) + as_float(aw[i]));
}
static void add_bfloat16(const void *x, const void *added, int narrow_x, int narrow_added, uint16_t *restrict out, int64_t row, int64_t d) {
    const uint16_t *xn = (const uint16_t *)x + row * d, *an = (const uint16_t *)added + row * d;
    (void)narrow_x, (void)narrow_added;
    for (int64_t i = 0; i < d; i++) out[i] = to_bfloat16(as_bits(as_float(load_bfloat16(xn[i])) + as_float(load_bfloat16(an[i]))));
}

/* x (n, d) and added (n, d) or null, bit patterns of float32 or, where narrow, bfloat16; y (n, d) of the wider type; bits (n, ceil(d / 8));
 * bias (d) or null; scratch (threads, 3 d + 2) words; and, both or neither, fired (threads, d) zeros and sums (threads, 3) zeros: energy
 * share kept, threshold (the smallest kept score), non-zeros.
 * Elements that are not added to travel as bit patterns, so copying never changes a NaN or a sign. SHIFT is what a float has more bits
 * than T. */
#define DEFINE(NAME, T, BITS, SHIFT)                                                                                          \
    static void rows_##NAME(const void *x, const void *added, T *restrict y, uint8_t *restrict bits,                          \
                            const float *restrict bias, int32_t *restrict fired, double *restrict sums, uint32_t *scratch,    \
                            int64_t first, int64_t last, int64_t d, int64_t k, int narrow_x, int narrow_added, int magnitude, \
                            int relu) {                                                                                       \
        uint32_t *restrict wide = scratch;          /* keys: of biased scores, */                                             \
        T *restrict keys = (T *)scratch;            /* or of values */                                                        \
        T *restrict summed = (T *)(scratch + d);    /* x + added */                                                           \
        uint8_t *restrict kept = (uint8_t *)(scratch + 2 * d);                                                                \
        Guess guess = {0, 0, root(2 * k)};                                                                                    \
        for (int64_t row = first; row < last; row++) {                                                                        \
            T *yr = y + row * d;                                                                                              \
            const T *xr = (const T *)x + row * d;                                                                             \
            uint32_t smallest;                                                                                                \
            if (added) {                                                                                                      \
                add_##NAME(x, added, narrow_x, narrow_added, summed, row, d);                                                 \
                xr = summed;                                                                                                  \
            }                                                                                                                 \
            if (bias) {                                                                                                       \
                for (int64_t i = 0; i < d; i++) wide[i] = biased_key(load_##NAME(xr[i]), bias[i], magnitude);                 \
                smallest = flag_32(wide, kept, d, k, find_32(wide, d, k, &guess));                                            \
            } else {                                                                                                          \
                if (magnitude)                                                                                                \
                    for (int64_t i = 0; i < d; i++) keys[i] = (T)(sort_key(load_##NAME(xr[i]), 1) >> SHIFT);                  \
                else                                                                                                          \
                    for (int64_t i = 0; i < d; i++) keys[i] = (T)(sort_key(load_##NAME(xr[i]), 0) >> SHIFT);                  \
                smallest = (uint32_t)flag_##BITS(keys, kept, d, k, find_##BITS(keys, d, k, &guess)) << SHIFT;                 \
            }                                                                                                                 \
            if (relu)                                                                                                         \
                for (int64_t i = 0; i < d; i++) kept[i] &= !(as_float(load_##NAME(xr[i])) <= 0.0f);                           \
            pack(kept, bits + row * ((d + 7) / 8), d);                                                                        \
            for (int64_t i = 0; i < d; i++) yr[i] = (T)(kept[i] ? xr[i] : 0);                                                 \
            if (!sums) continue;                                                                                              \
            float energy = 0, total = 0;                                                                                      \
            int32_t nonzero = 0;                                                                                              \
            for (int64_t i = 0; i < d; i++) {                                                                                 \
                float in = as_float(load_##NAME(xr[i])), out = as_float(load_##NAME(yr[i]));                                  \
                int32_t fires = out != 0.0f;                                                                                  \
                fired[i] += fires;                                                                                            \
                nonzero += fires;                                                                                             \
                energy += out * out;                                                                                          \
                total += in * in;                                                                                             \
            }                                                                                                                 \
            sums[0] += energy / (total < 1.17549435e-38f ? 1.17549435e-38f : total);                                          \
            sums[1] += bias ? key_to_score(smallest, 0, 0) : key_to_score(smallest, SHIFT, magnitude);                        \
            sums[2] += nonzero;                                                                                               \
        }                                                                                                                     \
    }                                                                                                                         \
    void topk_##NAME(const void *x, const void *added, T *y, uint8_t *bits, const float *bias, int32_t *fired, double *sums,  \
                     uint32_t *scratch, int64_t n, int64_t d, int64_t k, int narrow_x, int narrow_added, int magnitude,       \
                     int relu, int threads) {                                                                                 \
        _Pragma("omp parallel num_threads(threads)") {                                                                        \
            int64_t thread, first, last;                                                                                      \
            my_rows(n, &thread, &first, &last);                                                                               \
            rows_##NAME(x, added, y, bits, bias, sums ? fired + thread * d : 0, sums ? sums + thread * 3 : 0,                 \
                        scratch + thread * (3 * d + 2), first, last, d, k, narrow_x, narrow_added, magnitude, relu);          \
        }                                                                                                                     \
    }                                                                                                                         \
    /* The gradient where a bit is set and zero elsewhere, in its own type and, unless null, in bfloat16. */                  \
    void mask_##NAME(const T *restrict grad, const uint8_t *restrict bits, T *restrict out, uint16_t *restrict narrow,        \
                     int64_t n, int64_t d, int threads) {                                                                     \
        _Pragma("omp parallel num_threads(threads)") {                                                                        \
            int64_t thread, first, last;                                                                                      \
            my_rows(n, &thread, &first, &last);                                                                               \
            for (int64_t row = first; row < last; row++) {                                                                    \
                const T *g = grad + row * d;                                                                                  \
                T *o = out + row * d;                                                                                         \
                const uint8_t *b = bits + row * ((d + 7) / 8);                                                                \
                for (int64_t byte = 0; byte < d / 8; byte++)                                                                  \
                    for (int j = 0; j < 8; j++) o[8 * byte + j] = (T)(-(T)((b[byte] >> j) & 1)) & g[8 * byte + j];            \
                for (int64_t i = d / 8 * 8; i < d; i++) o[i] = (T)((b[i / 8] >> (i % 8)) & 1 ? g[i] : 0);                     \
                if (narrow)                                                                                                   \
                    for (int64_t i = 0; i < d; i++) narrow[row * d + i] = to_bfloat16(load_##NAME(o[i]));                     \
            }                                                                                                                 \
        }                                                                                                                     \
    }

DEFINE(float32, uint32_t, 32, 0)
DEFINE(bfloat16, uint16_t, 16, 16)
