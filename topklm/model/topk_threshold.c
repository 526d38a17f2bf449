/* TopK of many rows on a CPU, by an exact search for the k-th largest key.
 *
 * Each float becomes an unsigned integer that sorts as the float does (NaN above everything, -0 equal to +0). The k-th largest
 * key is then found bit by bit from the top: a candidate stands if at least k keys reach it. The search stops as soon as exactly k
 * keys do, which is after about log2(d) + 4 steps unless values tie. A row stays in the L1 cache throughout, and every loop is
 * plain enough for a compiler to vectorise. What the telemetry needs is counted on the way.
 *
 * With a bias the keys are those of float32 scores, value (or magnitude) + bias, whatever the type of x; what passes is x all the same.
 *
 * With OpenMP the rows are split over threads, each with counters of its own; PyTorch's OpenMP runtime is the one in the process, so its
 * threads are used rather than new ones. Without OpenMP one thread does it all.
 */
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }

/* used: the bits that the type has. A bfloat16 fills the upper half of a float, and its keys must keep the lower half clear. */
static inline uint32_t sort_key(uint32_t bits, uint32_t used, int magnitude) {
    uint32_t abs_bits = bits & 0x7fffffffu;
    uint32_t key = magnitude ? abs_bits : ((bits >> 31) ? ~bits & used : (bits | 0x80000000u));
    if (!magnitude) key = abs_bits == 0 ? 0x80000000u : key; /* -0 ties with +0 */
    return abs_bits > 0x7f800000u ? used : key;              /* NaN of either sign */
}

static inline float key_to_score(uint32_t key, uint32_t used, int magnitude) {
    if (key == used) return as_float(0x7fc00000u);
    if (magnitude) return as_float(key);
    return as_float((key >> 31) ? (key & 0x7fffffffu) : ~key & used);
}

/* A t that exactly k keys reach (>= t), or, where ties allow none, the largest t that at least k reach. *reached gets their number. */
static uint32_t find_threshold(const uint32_t *restrict keys, int64_t d, int64_t k, int lowest_bit, int64_t *reached) {
    uint32_t t = 0;
    int64_t count = d;
    for (int bit = 31; bit >= lowest_bit && count != k; bit--) {
        uint32_t candidate = t | (1u << bit);
        int32_t n = 0;
        for (int64_t i = 0; i < d; i++) n += keys[i] >= candidate;
        if (n >= k) { t = candidate; count = n; }
    }
    *reached = count;
    return t;
}

/* Turns keys into 0/1 flags of what is kept: all above t, and of those equal to t the first ones, k in all. Returns the smallest kept key. */
static uint32_t flag_kept(uint32_t *restrict keys, int64_t d, int64_t k, uint32_t t, int64_t reached) {
    uint32_t smallest = 0xffffffffu;
    for (int64_t i = 0; i < d; i++) {
        uint32_t kept_key = keys[i] >= t ? keys[i] : 0xffffffffu;
        smallest = kept_key < smallest ? kept_key : smallest;
    }
    if (reached == k) {
        for (int64_t i = 0; i < d; i++) keys[i] = keys[i] >= t;
        return smallest;
    }
    int64_t above = 0; /* the bits ran out: keys equal to t tie */
    for (int64_t i = 0; i < d; i++) above += keys[i] > t;
    int64_t ties = k - above;
    for (int64_t i = 0; i < d; i++) {
        uint32_t tie = keys[i] == t && ties > 0;
        ties -= tie;
        keys[i] = (keys[i] > t) | tie;
    }
    return smallest;
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

/* The keys of a row's biased scores, which take all 32 bits. */
static inline uint32_t biased_key(uint32_t bits, float bias, int magnitude) {
    float score = as_float(magnitude ? bits & 0x7fffffffu : bits) + bias;
    uint32_t score_bits;
    memcpy(&score_bits, &score, 4);
    return sort_key(score_bits, 0xffffffffu, 0);
}

/* x, y (n, d) bit patterns; mask (n, d); bias (d) or null; keys (threads, d) scratch; and, both or neither, fired (threads, d) zeros and
 * sums (threads, 3) zeros: energy share kept, threshold, non-zeros.
 * LOAD turns an element into the bits of a float. Elements travel as bit patterns, so copying never changes a NaN or a sign. */
#define DEFINE(NAME, T, LOWEST_BIT, LOAD)                                                                                     \
    static void rows_##NAME(const T *restrict x, T *restrict y, uint8_t *restrict mask, const float *restrict bias,           \
                            int32_t *restrict fired, double *restrict sums, uint32_t *restrict keys, int64_t first,           \
                            int64_t last, int64_t d, int64_t k, int magnitude, int relu) {                                    \
        const uint32_t used = 0xffffffffu << LOWEST_BIT;                                                                      \
        for (int64_t row = first; row < last; row++) {                                                                        \
            const T *xr = x + row * d;                                                                                        \
            T *yr = y + row * d;                                                                                              \
            uint8_t *mr = mask + row * d;                                                                                     \
            int64_t reached = d;                                                                                              \
            if (bias)                                                                                                         \
                for (int64_t i = 0; i < d; i++) keys[i] = biased_key(LOAD(xr[i]), bias[i], magnitude);                        \
            else                                                                                                              \
                for (int64_t i = 0; i < d; i++) keys[i] = sort_key(LOAD(xr[i]), used, magnitude);                             \
            uint32_t t = find_threshold(keys, d, k, bias ? 0 : LOWEST_BIT, &reached);                                         \
            uint32_t smallest = flag_kept(keys, d, k, t, reached);                                                            \
            if (bias && sums) { /* the threshold is of x, and the keys were of scores */                                      \
                smallest = 0xffffffffu;                                                                                       \
                for (int64_t i = 0; i < d; i++) {                                                                             \
                    uint32_t kept_key = keys[i] ? sort_key(LOAD(xr[i]), used, magnitude) : 0xffffffffu;                       \
                    smallest = kept_key < smallest ? kept_key : smallest;                                                     \
                }                                                                                                             \
            }                                                                                                                 \
            if (relu)                                                                                                         \
                for (int64_t i = 0; i < d; i++) keys[i] &= !(as_float(LOAD(xr[i])) <= 0.0f);                                  \
            for (int64_t i = 0; i < d; i++) {                                                                                 \
                yr[i] = (T)(keys[i] ? xr[i] : 0);                                                                             \
                mr[i] = (uint8_t)keys[i];                                                                                     \
            }                                                                                                                 \
            if (!sums) continue;                                                                                              \
            float kept = 0, total = 0;                                                                                        \
            int32_t nonzero = 0;                                                                                              \
            for (int64_t i = 0; i < d; i++) {                                                                                 \
                float in = as_float(LOAD(xr[i])), out = as_float(LOAD(yr[i]));                                                \
                int32_t fires = out != 0.0f;                                                                                  \
                fired[i] += fires;                                                                                            \
                nonzero += fires;                                                                                             \
                kept += out * out;                                                                                            \
                total += in * in;                                                                                             \
            }                                                                                                                 \
            sums[0] += kept / (total < 1.17549435e-38f ? 1.17549435e-38f : total);                                            \
            sums[1] += key_to_score(smallest, used, magnitude);                                                               \
            sums[2] += nonzero;                                                                                               \
        }                                                                                                                     \
    }                                                                                                                         \
    void topk_##NAME(const T *x, T *y, uint8_t *mask, const float *bias, int32_t *fired, double *sums, uint32_t *keys,        \
                     int64_t n, int64_t d, int64_t k, int magnitude, int relu, int threads) {                                 \
        _Pragma("omp parallel num_threads(threads)") {                                                                        \
            int64_t thread, first, last;                                                                                      \
            my_rows(n, &thread, &first, &last);                                                                               \
            rows_##NAME(x, y, mask, bias, sums ? fired + thread * d : 0, sums ? sums + thread * 3 : 0,                        \
                        keys + thread * d, first, last, d, k, magnitude, relu);                                               \
        }                                                                                                                     \
    }                                                                                                                         \
    void mask_##NAME(const T *restrict grad, const uint8_t *restrict mask, T *restrict out, int64_t n, int threads) {         \
        _Pragma("omp parallel num_threads(threads)") {                                                                        \
            int64_t thread, first, last;                                                                                      \
            my_rows(n, &thread, &first, &last);                                                                               \
            for (int64_t i = first; i < last; i++) out[i] = (T)(mask[i] ? grad[i] : 0);                                       \
        }                                                                                                                     \
    }

#define FLOAT_BITS(v) (v)
#define BFLOAT16_BITS(v) ((uint32_t)(v) << 16)

DEFINE(float32, uint32_t, 0, FLOAT_BITS)
DEFINE(bfloat16, uint16_t, 16, BFLOAT16_BITS)
