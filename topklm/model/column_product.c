/* y = W x on a CPU for rows x that are mostly zero: of W only the columns that meet a non-zero are read.
 *
 * W is stored by columns, (inputs, outputs), so that a column is contiguous. What decides the time is how many bytes come from memory:
 * columns are added up eight at a time into a tile of the output that stays in the L1 cache, so each is read once, in a stream. Sums are
 * float32, whatever the type. Every output is summed by one thread in the order of the inputs, so the result does not depend on the number
 * of threads.
 */
#include <stdint.h>
#include <string.h>

#define TILE 1024 /* outputs */

static inline float from_float32(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline float from_bfloat16(uint16_t bits) { return from_float32((uint32_t)bits << 16); }
static inline uint32_t to_float32(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

/* To the nearest, ties to even. */
static inline uint16_t to_bfloat16(float f) {
    uint32_t bits = to_float32(f);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

/* x (n, inputs), w (inputs, outputs) and y (n, outputs) are bit patterns; index and value (inputs) are scratch. A thread is worth starting
 * for every `work` multiplications. */
#define DEFINE(NAME, T)                                                                                                         \
    static void tile_##NAME(const T *restrict w, T *restrict y, const int32_t *restrict index, const float *restrict value,     \
                            int64_t found, int64_t outputs, int64_t width) {                                                    \
        float sum[TILE];                                                                                                        \
        memset(sum, 0, sizeof(float) * width);                                                                                  \
        int64_t j = 0;                                                                                                          \
        for (; j + 8 <= found; j += 8) {                                                                                        \
            const T *restrict c[8];                                                                                             \
            for (int r = 0; r < 8; r++) c[r] = w + index[j + r] * outputs;                                                      \
            const float *restrict v = value + j;                                                                                \
            for (int64_t i = 0; i < width; i++)                                                                                 \
                sum[i] += v[0] * from_##NAME(c[0][i]) + v[1] * from_##NAME(c[1][i]) + v[2] * from_##NAME(c[2][i]) +             \
                          v[3] * from_##NAME(c[3][i]) + v[4] * from_##NAME(c[4][i]) + v[5] * from_##NAME(c[5][i]) +             \
                          v[6] * from_##NAME(c[6][i]) + v[7] * from_##NAME(c[7][i]);                                            \
        }                                                                                                                       \
        for (; j < found; j++) {                                                                                                \
            const T *restrict c = w + index[j] * outputs;                                                                       \
            for (int64_t i = 0; i < width; i++) sum[i] += value[j] * from_##NAME(c[i]);                                         \
        }                                                                                                                       \
        for (int64_t i = 0; i < width; i++) y[i] = to_##NAME(sum[i]);                                                           \
    }                                                                                                                           \
    void column_product_##NAME(const T *restrict x, const T *restrict w, T *restrict y, int32_t *restrict index,                \
                               float *restrict value, int64_t n, int64_t inputs, int64_t outputs, int64_t work, int threads) {  \
        for (int64_t row = 0; row < n; row++, x += inputs, y += outputs) {                                                      \
            int64_t found = 0;                                                                                                  \
            for (int64_t i = 0; i < inputs; i++) {                                                                              \
                float v = from_##NAME(x[i]);                                                                                    \
                index[found] = (int32_t)i;                                                                                      \
                value[found] = v;                                                                                               \
                found += v != 0.0f; /* NaN is kept too */                                                                       \
            }                                                                                                                   \
            int64_t useful = found * outputs / work;                                                                            \
            int64_t of = useful < 1 ? 1 : useful < threads ? useful : threads;                                                  \
            int64_t tiles = ((outputs + TILE - 1) / TILE + of - 1) / of * of; /* as many for each thread */                     \
            int64_t width = ((outputs + tiles - 1) / tiles + 63) / 64 * 64;                                                     \
            _Pragma("omp parallel for num_threads(of) schedule(static)") for (int64_t o = 0; o < outputs; o += width)           \
                tile_##NAME(w + o, y + o, index, value, found, outputs, outputs - o < width ? outputs - o : width);             \
        }                                                                                                                       \
    }

DEFINE(float32, uint32_t)
DEFINE(bfloat16, uint16_t)
