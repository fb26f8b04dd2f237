/* Attention of one new token of each sequence over the pages of its KV, where they lie. Softmax in float32, page by
   page, so that sequences whose block tables begin alike read those pages together. */
#include "numbers.h"

/* Heads and sixteens of a head that are gone through at a time. */
#define HEADS 4
#define PIECES 4
#define NOTHING (-INFINITY)

/* One layer's KV and how its scores are made; `window` and `softcap` are 0 for none. */
struct layer {
    const char *keys, *values;
    int64_t page_tokens, heads, kv_heads, dim, window;
    float scale, softcap;
};

/* What a head of a row has seen: the greatest score, and the sum of all powers over it. */
struct seen {
    float greatest, sum;
};

/* One sequence's row at one key head: its query heads, scaled, and the values that they have gathered. */
struct row {
    const int64_t *table;
    int64_t length, place;
    float *queries, *outputs;
    struct seen *seen;
};

INLINE void score(
    const int heads, const float *queries, const void *keys, int64_t token_stride, int64_t count, int64_t dim,
    float *scores, const int wide)
{
    for (int64_t token = 0; token < count; token++) {
        lanes sums[HEADS] = {{0}};
        for (int64_t place = 0; place < dim; place += LANES) {
            lanes key = read_lanes(keys, token * token_stride + place, wide);
#pragma GCC unroll 4
            for (int head = 0; head < heads; head++)
                sums[head] += key * *(const lanes_at *)(queries + head * dim + place);
        }
#pragma GCC unroll 4
        for (int head = 0; head < heads; head++)
            scores[head * count + token] = sum_of(sums[head]);
    }
}

INLINE void weigh(
    const int heads, const int pieces, const float *powers, const void *values, int64_t token_stride, int64_t count,
    int64_t dim, float *outputs, const int wide)
{
    lanes sums[HEADS][PIECES];
#pragma GCC unroll 4
    for (int head = 0; head < heads; head++)
#pragma GCC unroll 4
        for (int piece = 0; piece < pieces; piece++)
            sums[head][piece] = *(const lanes_at *)(outputs + head * dim + piece * LANES);
    for (int64_t token = 0; token < count; token++)
#pragma GCC unroll 4
        for (int piece = 0; piece < pieces; piece++) {
            lanes value = read_lanes(values, token * token_stride + piece * LANES, wide);
#pragma GCC unroll 4
            for (int head = 0; head < heads; head++)
                sums[head][piece] += value * powers[head * count + token];
        }
#pragma GCC unroll 4
    for (int head = 0; head < heads; head++)
#pragma GCC unroll 4
        for (int piece = 0; piece < pieces; piece++)
            *(lanes_at *)(outputs + head * dim + piece * LANES) = sums[head][piece];
}

/* Scores become powers over the greatest that was seen, and what was summed before is brought down to it. */
static void raise(const struct layer *layer, float *scores, int64_t count, struct seen *seen, float *outputs)
{
    float greatest = seen->greatest, sum = 0.0f;
    if (layer->softcap != 0.0f)
        for (int64_t token = 0; token < count; token++)
            scores[token] = layer->softcap * tanhf(scores[token] / layer->softcap);
#pragma omp simd reduction(max : greatest)
    for (int64_t token = 0; token < count; token++)
        greatest = scores[token] > greatest ? scores[token] : greatest;
    float lowered = seen->greatest == NOTHING ? 0.0f : exponential(seen->greatest - greatest);
#pragma omp simd reduction(+ : sum)
    for (int64_t token = 0; token < count; token++) {
        scores[token] = exponential(scores[token] - greatest);
        sum += scores[token];
    }
    seen->sum = seen->sum * lowered + sum;
    if (greatest != seen->greatest)
        for (int64_t place = 0; place < layer->dim; place++)
            outputs[place] *= lowered;
    seen->greatest = greatest;
}

INLINE void attend_heads(
    const int heads, const struct layer *layer, const float *queries, const char *keys, const char *values,
    int64_t count, struct seen *seen, float *outputs, float *scores, const int wide)
{
    int64_t stride = layer->kv_heads * layer->dim, dim = layer->dim, size = wide ? 4 : 2, place = 0;
    score(heads, queries, keys, stride, count, dim, scores, wide);
    for (int head = 0; head < heads; head++)
        raise(layer, scores + head * count, count, seen + head, outputs + head * dim);
    for (; place + PIECES * LANES <= dim; place += PIECES * LANES)
        weigh(heads, PIECES, scores, values + place * size, stride, count, dim, outputs + place, wide);
    for (; place < dim; place += LANES)
        weigh(heads, 1, scores, values + place * size, stride, count, dim, outputs + place, wide);
}

/* The tokens of one page that the row sees. `number` counts the pages of its block table. */
INLINE void visit(
    const struct layer *layer, const struct row *row, int64_t kv_head, int64_t number, float *scores, const int wide)
{
    int64_t size = layer->page_tokens, start = number * size, dim = layer->dim;
    int64_t first = layer->window && row->length > layer->window ? row->length - layer->window - start : 0;
    int64_t end = row->length - start < size ? row->length - start : size;
    first = first < 0 ? 0 : first;
    if (first >= end)
        return;
    int64_t token = row->table[number] * size + first, shared = layer->heads / layer->kv_heads, head = 0;
    int64_t at = (token * layer->kv_heads + kv_head) * dim * (wide ? 4 : 2);
    const char *keys = layer->keys + at, *values = layer->values + at;
#define SOME(heads) \
    for (; head + heads <= shared; head += heads) \
        attend_heads( \
            heads, layer, row->queries + head * dim, keys, values, end - first, row->seen + head, \
            row->outputs + head * dim, scores, wide)
    SOME(4);
    SOME(2);
    SOME(1);
#undef SOME
}

/* Rows whose first `together` pages are the same ones: those one after the other for all rows, then each row's own. */
INLINE void attend_run(
    const struct layer *layer, struct row *rows, int64_t count, int64_t together, int64_t kv_head, float *scores,
    const int wide)
{
    for (int64_t number = 0; number < together; number++)
        for (int64_t row = 0; row < count; row++)
            visit(layer, rows + row, kv_head, number, scores, wide);
    for (int64_t row = 0; row < count; row++)
        for (int64_t number = together; number * layer->page_tokens < rows[row].length; number++)
            visit(layer, rows + row, kv_head, number, scores, wide);
}

/* The whole batch: its block tables `[n, width]`, lengths `[n]`, and its rows in the order of the runs. */
struct batch {
    const void *queries;
    void *outputs;
    const int64_t *tables, *lengths, *members;
    int64_t width;
};

static void open_row(const struct layer *layer, const struct batch *batch, struct row *row, int64_t kv_head, const int wide)
{
    int64_t shared = layer->heads / layer->kv_heads, all = shared * layer->dim;
    for (int64_t place = 0; place < all; place++) {
        row->queries[place] = read_one(batch->queries, row->place + kv_head * all + place, wide) * layer->scale;
        row->outputs[place] = 0.0f;
    }
    for (int64_t head = 0; head < shared; head++)
        row->seen[head] = (struct seen){NOTHING, 0.0f};
}

static void close_row(const struct layer *layer, const struct batch *batch, const struct row *row, int64_t kv_head, const int wide)
{
    int64_t all = layer->heads / layer->kv_heads * layer->dim;
    for (int64_t place = 0; place < all; place++)
        write_one(
            batch->outputs, row->place + kv_head * all + place,
            row->outputs[place] / row->seen[place / layer->dim].sum, wide);
}

/* `run`: its first place in the order of rows, how many follow, and how many pages are theirs together. */
static void attend(const struct layer *layer, const struct batch *batch, const int64_t *run, int64_t kv_head, int wide)
{
    int64_t shared = layer->heads / layer->kv_heads, all = shared * layer->dim, count = run[1];
    int64_t floats = count * (2 * all + 2 * shared) + HEADS * layer->page_tokens;
    float *room = room_for(SUMS, floats + count * (int64_t)(sizeof(struct row) / sizeof(float)));
    struct row *rows = (struct row *)room;
    float *next = room + count * (int64_t)(sizeof(struct row) / sizeof(float)), *scores = next;
    next += HEADS * layer->page_tokens;
    for (int64_t row = 0; row < count; row++) {
        int64_t member = batch->members[run[0] + row];
        struct seen *seen = (struct seen *)(next + 2 * all);
        rows[row] = (struct row){
            batch->tables + member * batch->width, batch->lengths[member], member * layer->heads * layer->dim,
            next, next + all, seen};
        next += 2 * all + 2 * shared;
        open_row(layer, batch, rows + row, kv_head, wide);
    }
    if (wide)
        attend_run(layer, rows, count, run[2], kv_head, scores, 1);
    else
        attend_run(layer, rows, count, run[2], kv_head, scores, 0);
    for (int64_t row = 0; row < count; row++)
        close_row(layer, batch, rows + row, kv_head, wide);
}

/* `queries` and `outputs` are `[n, heads, dim]`, `keys` and `values` `[pages, page_tokens, kv_heads, dim]`, dim a
   multiple of 16; `tables` `[n, width]`, `lengths` `[n]` with the new token; `runs` `[m, 3]` of the rows in the order of
   `members` `[n]`. */
void baton_attend(
    const void *queries, const void *keys, const void *values, void *outputs,
    const int64_t *tables, const int64_t *lengths, const int64_t *members, const int64_t *runs,
    int64_t count, int64_t width, int64_t page_tokens, int64_t heads, int64_t kv_heads, int64_t dim,
    int64_t window, float scale, float softcap, int wide)
{
    struct layer layer = {keys, values, page_tokens, heads, kv_heads, dim, window, scale, softcap};
    struct batch batch = {queries, outputs, tables, lengths, members, width};
#pragma omp parallel for schedule(dynamic, 1) collapse(2)
    for (int64_t run = 0; run < count; run++)
        for (int64_t kv_head = 0; kv_head < kv_heads; kv_head++)
            attend(&layer, &batch, runs + run * 3, kv_head, wide);
}
