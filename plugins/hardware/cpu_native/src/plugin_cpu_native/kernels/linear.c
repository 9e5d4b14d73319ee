/* Products of bfloat16 rows with a packed bfloat16 weight, sums in float32.
 *
 * Packed weight of [N, K]: [N/16][K/2][16][2], that is for 16 outputs and two inputs one vector of 64 bytes. A row is
 * multiplied without sums across lanes, and 32 inputs of 16 outputs are one tile of the matrix unit. */
#include "common.h"

#define COLUMNS 16
#define TILE_ROWS 16
#define FEW_ROWS 4 /* up to here the vector unit; the matrix unit has no more to do for 16 rows than for 5 */

#if defined(__AVX512BF16__)

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define MATRIX_UNIT
#endif

struct product {
    const bf16 *x, *weight, *bias;
    bf16 *out;
    int64_t x_stride, out_stride;
    int num_rows, num_out, num_in;
    int chunk_rows, chunk_blocks;
    int next;
};

INLINE void finish_row(const struct product *c, int64_t row, int block, vec y) {
    if (c->bias) y += load_bf16(c->bias + block * COLUMNS);
    store_bf16(c->out + row * c->out_stride + block * COLUMNS, y);
}

/* `num` rows (a constant) from `row` on, one block of columns. */
INLINE void few_rows(const struct product *c, int row, int block, const int num) {
    const bf16 *w = c->weight + (int64_t)block * COLUMNS * c->num_in;
    __m512 even[FEW_ROWS], odd[FEW_ROWS];
    for (int i = 0; i < num; i++) even[i] = odd[i] = _mm512_setzero_ps();
    for (int k = 0; k < c->num_in; k += 4) {
        __m512bh a = (__m512bh)_mm512_loadu_si512(w + (int64_t)k * COLUMNS);
        __m512bh b = (__m512bh)_mm512_loadu_si512(w + (int64_t)(k + 2) * COLUMNS);
#pragma GCC unroll 4
        for (int i = 0; i < num; i++) {
            int32_t pair[2];
            memcpy(pair, c->x + (row + i) * c->x_stride + k, sizeof pair);
            even[i] = _mm512_dpbf16_ps(even[i], (__m512bh)_mm512_set1_epi32(pair[0]), a);
            odd[i] = _mm512_dpbf16_ps(odd[i], (__m512bh)_mm512_set1_epi32(pair[1]), b);
        }
    }
    for (int i = 0; i < num; i++) finish_row(c, row + i, block, (vec)_mm512_add_ps(even[i], odd[i]));
}

static void vector_rows(void *data) {
    const struct product *c = data;
    int64_t first, last;
    share(c->num_out / COLUMNS, &first, &last);
    for (int block = (int)first; block < last; block++) {
        int row = 0;
        for (; row + 4 <= c->num_rows; row += 4) few_rows(c, row, block, 4);
        switch (c->num_rows - row) {
            case 3: few_rows(c, row, block, 3); break;
            case 2: few_rows(c, row, block, 2); break;
            case 1: few_rows(c, row, block, 1); break;
        }
    }
}

#ifdef MATRIX_UNIT

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* Tiles 0-3: sums; 4, 5: rows of x; 6, 7: columns of the weight. */
static void configure(int upper, int lower) {
    struct tile_config t;
    memset(&t, 0, sizeof t);
    t.palette = 1;
    for (int i = 0; i < 8; i++) t.bytes[i] = 64;
    t.rows[0] = t.rows[1] = t.rows[4] = (uint8_t)upper;
    t.rows[2] = t.rows[3] = t.rows[5] = (uint8_t)(lower > 0 ? lower : upper);
    t.rows[6] = t.rows[7] = 16;
    _tile_loadconfig(&t);
}

static void finish_tile(const struct product *c, const float *sums, int row, int rows, int block) {
    for (int i = 0; i < rows; i++) finish_row(c, row + i, block, load_f32(sums + i * COLUMNS));
}

/* Up to 32 rows from `row` on and one or two blocks of columns. The tiles are configured for these rows. */
static void tile_product(const struct product *c, int row, int upper, int lower, int block, int two, float *sums) {
    int stride = (int)(c->x_stride * 2);
    const bf16 *x0 = c->x + row * c->x_stride, *x1 = x0 + 16 * c->x_stride;
    const bf16 *w0 = c->weight + (int64_t)block * COLUMNS * c->num_in, *w1 = w0 + (int64_t)COLUMNS * c->num_in;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (two && lower)
        for (int k = 0; k < c->num_in; k += 32) {
            _tile_loadd(6, w0 + (int64_t)k * COLUMNS, 64);
            _tile_loadd(4, x0 + k, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, w1 + (int64_t)k * COLUMNS, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, x1 + k, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    else
        for (int k = 0; k < c->num_in; k += 32) {
            _tile_loadd(6, w0 + (int64_t)k * COLUMNS, 64);
            _tile_loadd(4, x0 + k, stride);
            _tile_dpbf16ps(0, 4, 6);
            if (lower) {
                _tile_loadd(5, x1 + k, stride);
                _tile_dpbf16ps(2, 5, 6);
            }
            if (two) {
                _tile_loadd(7, w1 + (int64_t)k * COLUMNS, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
        }
    _tile_stored(0, sums, 64);
    finish_tile(c, sums, row, upper, block);
    if (two) {
        _tile_stored(1, sums, 64);
        finish_tile(c, sums, row, upper, block + 1);
    }
    if (lower) {
        _tile_stored(2, sums, 64);
        finish_tile(c, sums, row + 16, lower, block);
        if (two) {
            _tile_stored(3, sums, 64);
            finish_tile(c, sums, row + 16, lower, block + 1);
        }
    }
}

static void matrix_rows(void *data) {
    struct product *c = data;
    float sums[TILE_ROWS * COLUMNS] __attribute__((aligned(64)));
    int blocks = c->num_out / COLUMNS;
    int across = (blocks + c->chunk_blocks - 1) / c->chunk_blocks;
    int down = (c->num_rows + c->chunk_rows - 1) / c->chunk_rows;
    int configured = -1;
    for (;;) {
        int item = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
        if (item >= across * down) break;
        int first_block = item % across * c->chunk_blocks, first_row = item / across * c->chunk_rows;
        int last_block = first_block + c->chunk_blocks < blocks ? first_block + c->chunk_blocks : blocks;
        int last_row = first_row + c->chunk_rows < c->num_rows ? first_row + c->chunk_rows : c->num_rows;
        for (int block = first_block; block < last_block; block += 2)
            for (int row = first_row; row < last_row; row += 32) {
                int left = last_row - row < 32 ? last_row - row : 32;
                int upper = left < 16 ? left : 16, lower = left - upper;
                if (configured != left) {
                    configure(upper, lower);
                    configured = left;
                }
                tile_product(c, row, upper, lower, block, block + 1 < last_block, sums);
            }
    }
    if (configured >= 0) _tile_release();
}
#endif

/* 2: with the matrix unit, 1: with products of pairs, 0: not at all. Asks the system for the matrix unit's state. */
EXPORT int cpu_native_linear_kind(void) {
#ifdef MATRIX_UNIT
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0) return 2;
#endif
    return 1;
}

/* weight [num_out, num_in] -> packed; num_out a multiple of 16, num_in of 32. */
EXPORT void cpu_native_pack(const bf16 *weight, bf16 *packed, int64_t num_out, int64_t num_in) {
    for (int64_t block = 0; block < num_out / COLUMNS; block++)
        for (int64_t column = 0; column < COLUMNS; column++) {
            const bf16 *from = weight + (block * COLUMNS + column) * num_in;
            bf16 *to = packed + block * COLUMNS * num_in + column * 2;
            for (int64_t k = 0; k < num_in; k += 2) memcpy(to + k * COLUMNS, from + k, 4);
        }
}

/* x [num_rows, num_in] -> out [num_rows, num_out]. bias [num_out] or NULL. kind: of `cpu_native_linear_kind`. */
EXPORT void cpu_native_linear(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, int num_rows,
                              int64_t x_stride, int num_out, int num_in, int kind) {
    struct product c = {x, weight, bias, out, x_stride, num_out, num_rows, num_out, num_in, 0, 0, 0};
    int blocks = num_out / COLUMNS, most = omp_get_max_threads();
    if (num_rows <= 0) return;
#ifdef MATRIX_UNIT
    if (kind == 2 && num_rows > FEW_ROWS) {
        /* Rows of x that stay in the second-level cache, and columns enough for each thread to have some pieces. */
        int rows = 256 * 1024 / num_in / 32 * 32;
        c.chunk_rows = rows < 32 ? 32 : rows;
        int pieces = (num_rows + c.chunk_rows - 1) / c.chunk_rows;
        int wanted = (4 * most + pieces - 1) / pieces;
        int each = (blocks / wanted + 1) / 2 * 2;
        c.chunk_blocks = each < 2 ? 2 : each;
        run_parallel(matrix_rows, &c, most);
        return;
    }
#endif
    (void)kind;
    int threads = threads_for((int64_t)num_out * num_in * (num_rows < 4 ? 1 : num_rows / 4), 16384);
    run_parallel(vector_rows, &c, threads < blocks ? threads : blocks);
}

#else

EXPORT int cpu_native_linear_kind(void) { return 0; }

#endif
