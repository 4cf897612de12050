/* A tiny GPT in plain C: forward, backward, AdamW and generation, as an implementation for `numpygpt conform`.
 *
 *     cc -std=c99 -O2 -o gpt gpt.c -lm
 *     numpygpt conform --command ./gpt
 *
 * It is started with the path of a folder, reads case.json and given.safetensors there, and writes computed.safetensors
 * (docs/conformance.md). Every tensor has the name and the formula of docs/trace-format.md, so none is explained twice.
 * The machine is taken to be little-endian, as the files are. Exit status 1, with one line on stderr, if anything fails.
 */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *name) {
    fprintf(stderr, "gpt: %s %s\n", what, name);
    exit(1);
}

static void *zeros(size_t bytes) {
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (!memory) fail("memory is short", "");
    return memory;
}

/* A text made as by printf. It is never freed: the program is short. */
static char *text(const char *format, ...) {
    char *made = zeros(256);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(made, 256, format, arguments);
    va_end(arguments);
    return made;
}

/* ---- The files ---- */

static char *folder, *asked, *header;
static char *data; /* of given.safetensors, after its header */

static char *read_file(const char *name, size_t *size) {
    FILE *file = fopen(text("%s/%s", folder, name), "rb");
    if (!file) fail("cannot read", name);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *bytes = zeros(*size + 1);
    if (fread(bytes, 1, *size, file) != *size) fail("cannot read", name);
    fclose(file);
    return bytes;
}

/* The text behind "key": in case.json. */
static char *value(const char *key) {
    char *found = strstr(asked, text("\"%s\":", key));
    if (!found) fail("case.json lacks", key);
    return found + strlen(key) + 4; /* two quotes, the colon and a space */
}

static double number(const char *key) { return strtod(value(key), NULL); }
static int whole(const char *key) { return (int)number(key); }
static int is(const char *key, const char *word) { return !strncmp(value(key) + 1, word, strlen(word)); }

/* The bytes of a given tensor, and how many there are; NULL if there is no such tensor. */
static void *given(const char *name, size_t *bytes) {
    char *entry = strstr(header, text("\"%s\":", name));
    unsigned long long begin, end;
    if (!entry) return NULL;
    if (sscanf(strstr(entry, "\"data_offsets\""), "\"data_offsets\":[%llu,%llu]", &begin, &end) != 2)
        fail("no place is told for", name);
    if (bytes) *bytes = (size_t)(end - begin);
    return data + begin;
}

/* What is written: tensors of double, or of int64_t. */
typedef struct {
    char *name, shape[64];
    size_t count;
    void *values;
    int is_integer;
} Output;

#define MOST_OUTPUTS 20000
#define MOST_BLOCKS 100

static Output outputs[MOST_OUTPUTS];
static int n_outputs, recording;

static size_t size_of(int axes, const int *shape) {
    size_t count = 1;
    for (int axis = 0; axis < axes; axis++) count *= (size_t)shape[axis];
    return count;
}

static void write_later(char *name, void *values, int is_integer, int axes, const int *shape) {
    if (n_outputs == MOST_OUTPUTS) fail("there are too many tensors:", name);
    Output *output = &outputs[n_outputs++];
    output->name = name, output->values = values, output->is_integer = is_integer;
    output->count = size_of(axes, shape);
    for (int axis = 0; axis < axes; axis++)
        sprintf(output->shape + strlen(output->shape), axis ? ",%d" : "%d", shape[axis]);
}

/* A tensor of zeros. It is written at the end if we are recording, which we are in the first step. */
static double *tensor(char *name, int axes, const int *shape) {
    double *values = zeros(size_of(axes, shape) * sizeof *values);
    if (recording) write_later(name, values, 0, axes, shape);
    return values;
}

static void write_outputs(void) {
    FILE *file = fopen(text("%s/computed.safetensors", folder), "wb");
    if (!file) fail("cannot write", "computed.safetensors");
    char *json = zeros((size_t)n_outputs * 512 + 16), *end = json;
    size_t offset = 0;
    for (int i = 0; i < n_outputs; i++) {
        Output *o = &outputs[i];
        end += sprintf(end, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", i ? ',' : '{', o->name,
                       o->is_integer ? "I64" : "F64", o->shape, offset, offset + 8 * o->count);
        offset += 8 * o->count;
    }
    end += sprintf(end, "}");
    uint64_t length = (uint64_t)(end - json);
    fwrite(&length, 8, 1, file);
    fwrite(json, 1, length, file);
    for (int i = 0; i < n_outputs; i++) fwrite(outputs[i].values, 8, outputs[i].count, file);
    if (fclose(file)) fail("cannot write", "computed.safetensors");
}

/* ---- The model ---- */

static int C, V, D, H, K, L, F; /* context_length, vocab_size, emb_dim, n_heads, head_dim, n_layers, 4 emb_dim */
static double eps, kept_share;
static int exact_gelu;

typedef struct {
    char *name;
    int axes, shape[2];
    size_t count;
    double *value, *grad, *m, *v;
} Parameter;

static Parameter parameters[16 * MOST_BLOCKS + 5];
static int n_parameters;

/* The parameter of that name; NULL if the model has none. */
static Parameter *find(const char *name) {
    for (int i = 0; i < n_parameters; i++)
        if (!strcmp(parameters[i].name, name)) return &parameters[i];
    return NULL;
}

/* Take a parameter from what is given, if it is there. A vector has columns 0. */
static void take(char *name, int rows, int columns) {
    size_t bytes;
    void *values = given(name, &bytes);
    if (!values) return;
    Parameter *p = &parameters[n_parameters++];
    p->name = name, p->axes = columns ? 2 : 1, p->shape[0] = rows, p->shape[1] = columns;
    p->count = size_of(p->axes, p->shape);
    if (bytes != p->count * sizeof(double)) fail("a parameter is not of float64 or has another shape:", name);
    p->value = zeros(bytes), p->grad = zeros(bytes), p->m = zeros(bytes), p->v = zeros(bytes);
    memcpy(p->value, values, bytes);
}

static void take_linear(const char *name, int out, int in) {
    take(text("%s.weight", name), out, in);
    take(text("%s.bias", name), out, 0);
}

static void take_norm(const char *name) {
    take(text("%s.scale", name), D, 0);
    take(text("%s.shift", name), D, 0);
}

static void take_all(void) {
    take("tok_emb.weight", V, D);
    take("pos_emb.weight", C, D);
    for (int i = 0; i < L; i++) {
        take_linear(text("trf_blocks.%d.att.W_query", i), D, D);
        take_linear(text("trf_blocks.%d.att.W_key", i), D, D);
        take_linear(text("trf_blocks.%d.att.W_value", i), D, D);
        take_linear(text("trf_blocks.%d.att.out_proj", i), D, D);
        take_linear(text("trf_blocks.%d.ff.layers.0", i), F, D);
        take_linear(text("trf_blocks.%d.ff.layers.2", i), D, F);
        take_norm(text("trf_blocks.%d.norm1", i));
        take_norm(text("trf_blocks.%d.norm2", i));
    }
    take_norm("final_norm");
    take("out_head.weight", V, D);
}

/* ---- The operations, each with its backward. A backward adds to the gradients. ---- */

static void linear(double *y, const double *x, const char *name, int rows, int out, int in) {
    Parameter *weight = find(text("%s.weight", name)), *bias = find(text("%s.bias", name));
    for (int n = 0; n < rows; n++)
        for (int o = 0; o < out; o++) {
            double sum = bias ? bias->value[o] : 0;
            for (int i = 0; i < in; i++) sum += x[n * in + i] * weight->value[o * in + i];
            y[n * out + o] = sum;
        }
}

static void linear_backward(double *dx, const double *dy, const double *x, const char *name, int rows, int out, int in) {
    Parameter *weight = find(text("%s.weight", name)), *bias = find(text("%s.bias", name));
    for (int n = 0; n < rows; n++)
        for (int o = 0; o < out; o++) {
            double d = dy[n * out + o];
            if (bias) bias->grad[o] += d;
            for (int i = 0; i < in; i++) {
                dx[n * in + i] += d * weight->value[o * in + i];
                weight->grad[o * in + i] += d * x[n * in + i];
            }
        }
}

/* (x - mean) / sqrt(variance + eps) of a row, and 1 / sqrt(variance + eps). */
static double normalize(double *normalized, const double *x) {
    double mean = 0, variance = 0;
    for (int i = 0; i < D; i++) mean += x[i] / D;
    for (int i = 0; i < D; i++) variance += (x[i] - mean) * (x[i] - mean) / D;
    double factor = 1 / sqrt(variance + eps);
    for (int i = 0; i < D; i++) normalized[i] = (x[i] - mean) * factor;
    return factor;
}

static void norm(double *y, const double *x, const char *name, int rows) {
    Parameter *scale = find(text("%s.scale", name)), *shift = find(text("%s.shift", name));
    for (int n = 0; n < rows; n++) {
        normalize(y + n * D, x + n * D);
        for (int i = 0; i < D; i++) y[n * D + i] = scale->value[i] * y[n * D + i] + (shift ? shift->value[i] : 0);
    }
}

static void norm_backward(double *dx, const double *dy, const double *x, const char *name, int rows) {
    Parameter *scale = find(text("%s.scale", name)), *shift = find(text("%s.shift", name));
    double *normalized = zeros((size_t)D * sizeof(double));
    for (int n = 0; n < rows; n++) {
        double factor = normalize(normalized, x + n * D), mean = 0, along = 0;
        for (int i = 0; i < D; i++) {
            double d = dy[n * D + i] * scale->value[i];
            mean += d / D, along += d * normalized[i] / D;
            scale->grad[i] += dy[n * D + i] * normalized[i];
            if (shift) shift->grad[i] += dy[n * D + i];
        }
        for (int i = 0; i < D; i++)
            dx[n * D + i] += factor * (dy[n * D + i] * scale->value[i] - mean - normalized[i] * along);
    }
    free(normalized);
}

/* Dropout by the given mask of this site, and its own backward: both multiply by the same. Without a mask, a copy. */
static void dropout(double *y, const double *x, const char *site, size_t count, int training) {
    const char *keep = training ? given(text("keep.%s", site), NULL) : NULL;
    for (size_t i = 0; i < count; i++) y[i] = !keep ? x[i] : keep[i] ? x[i] / kept_share : 0;
}

static double gelu(double x, double *slope) {
    if (exact_gelu) {
        double below = 0.5 * (1 + erf(x / sqrt(2)));
        *slope = below + x * exp(-x * x / 2) / sqrt(2 * acos(-1));
        return x * below;
    }
    double root = sqrt(2 / acos(-1)), t = tanh(root * (x + 0.044715 * x * x * x));
    *slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x);
    return 0.5 * x * (1 + t);
}

/* From (B, T, D) to (B, H, T, K), or back. */
static void heads(double *split, double *merged, int B, int T, int back) {
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++)
            for (int d = 0; d < D; d++) {
                double *in_heads = &split[((b * H + d / K) * T + t) * K + d % K], *in_row = &merged[(b * T + t) * D + d];
                if (back) *in_row = *in_heads; else *in_heads = *in_row;
            }
}

/* ---- The steps ---- */

typedef struct {
    double *x, *norm1, *q, *k, *v, *scores, *weights, *dropped, *context, *projected, *drop_att;
    double *residual, *norm2, *ff0, *ff1, *ff2, *drop_ff, *out;
} Block;

static Block blocks[MOST_BLOCKS];
static double *tok_emb, *pos_emb, *drop_emb, *final_norm, *logits, *loss;

#define BTD 3, (int[]){B, T, D}
#define BTF 3, (int[]){B, T, F}
#define BHTK 4, (int[]){B, H, T, K}
#define BHTT 4, (int[]){B, H, T, T}
#define NAME(format) text("trf_blocks.%d." format, i)
#define D_NAME(format) text("d_trf_blocks.%d." format, i)

static void attend(Block *a, int B, int T) {
    for (int bh = 0; bh < B * H; bh++)
        for (int t = 0; t < T; t++) {
            double *scores = a->scores + (bh * T + t) * T, *weights = a->weights + (bh * T + t) * T;
            double largest = -INFINITY, sum = 0;
            for (int s = 0; s < T; s++) {
                scores[s] = s > t ? -INFINITY : 0;
                for (int j = 0; s <= t && j < K; j++)
                    scores[s] += a->q[(bh * T + t) * K + j] * a->k[(bh * T + s) * K + j] / sqrt(K);
                largest = fmax(largest, scores[s]);
            }
            for (int s = 0; s < T; s++) sum += weights[s] = exp(scores[s] - largest);
            for (int s = 0; s < T; s++) weights[s] /= sum;
        }
}

static double *split_linear(char *of_output, const double *x, const char *name, int B, int T) {
    double *merged = zeros((size_t)(B * T * D) * sizeof(double)), *split = tensor(of_output, BHTK);
    linear(merged, x, name, B * T, D, D);
    heads(split, merged, B, T, 0);
    free(merged);
    return split;
}

static double *block_forward(double *x, int i, int B, int T, int training) {
    Block *a = &blocks[i];
    int rows = B * T;
    a->x = x;
    norm(a->norm1 = tensor(NAME("norm1"), BTD), x, NAME("norm1"), rows);
    a->q = split_linear(NAME("att.queries"), a->norm1, NAME("att.W_query"), B, T);
    a->k = split_linear(NAME("att.keys"), a->norm1, NAME("att.W_key"), B, T);
    a->v = split_linear(NAME("att.values"), a->norm1, NAME("att.W_value"), B, T);
    a->scores = tensor(NAME("att.attn_scores"), BHTT), a->weights = tensor(NAME("att.attn_weights"), BHTT);
    attend(a, B, T);
    a->dropped = tensor(NAME("att.dropout"), BHTT);
    dropout(a->dropped, a->weights, NAME("att.dropout"), (size_t)(B * H * T * T), training);
    double *split = zeros((size_t)(rows * D) * sizeof(double));
    for (int r = 0; r < B * H * T; r++)
        for (int s = 0; s < T; s++)
            for (int j = 0; j < K; j++) split[r * K + j] += a->dropped[r * T + s] * a->v[(r / T * T + s) * K + j];
    heads(split, a->context = tensor(NAME("att.context_vec"), BTD), B, T, 1);
    free(split);
    linear(a->projected = tensor(NAME("att.out_proj"), BTD), a->context, NAME("att.out_proj"), rows, D, D);
    dropout(a->drop_att = tensor(NAME("drop_att"), BTD), a->projected, NAME("drop_att"), (size_t)(rows * D), training);
    a->residual = tensor(NAME("residual"), BTD);
    for (int n = 0; n < rows * D; n++) a->residual[n] = x[n] + a->drop_att[n];
    norm(a->norm2 = tensor(NAME("norm2"), BTD), a->residual, NAME("norm2"), rows);
    linear(a->ff0 = tensor(NAME("ff.layers.0"), BTF), a->norm2, NAME("ff.layers.0"), rows, F, D);
    a->ff1 = tensor(NAME("ff.layers.1"), BTF);
    double slope;
    for (int n = 0; n < rows * F; n++) a->ff1[n] = gelu(a->ff0[n], &slope);
    linear(a->ff2 = tensor(NAME("ff.layers.2"), BTD), a->ff1, NAME("ff.layers.2"), rows, D, F);
    dropout(a->drop_ff = tensor(NAME("drop_ff"), BTD), a->ff2, NAME("drop_ff"), (size_t)(rows * D), training);
    a->out = tensor(text("trf_blocks.%d", i), BTD);
    for (int n = 0; n < rows * D; n++) a->out[n] = a->residual[n] + a->drop_ff[n];
    return a->out;
}

static const char *head(void) { return find("out_head.weight") ? "out_head" : "tok_emb"; }

static void forward(const int64_t *ids, int B, int T, int training) {
    Parameter *learned = find("pos_emb.weight");
    double *summed = zeros((size_t)(B * T * D) * sizeof(double));
    tok_emb = tensor("tok_emb", BTD), pos_emb = tensor("pos_emb", 2, (int[]){T, D}), drop_emb = tensor("drop_emb", BTD);
    for (int t = 0; t < T; t++)
        for (int d = 0; d < D; d++) {
            double angle = t / pow(10000, (double)(d - d % 2) / D);
            pos_emb[t * D + d] = learned ? learned->value[t * D + d] : d % 2 ? cos(angle) : sin(angle);
        }
    for (int n = 0; n < B * T; n++)
        for (int d = 0; d < D; d++) {
            tok_emb[n * D + d] = find("tok_emb.weight")->value[ids[n] * D + d];
            summed[n * D + d] = tok_emb[n * D + d] + pos_emb[n % T * D + d];
        }
    dropout(drop_emb, summed, "drop_emb", (size_t)(B * T * D), training);
    double *x = drop_emb;
    for (int i = 0; i < L; i++) x = block_forward(x, i, B, T, training);
    norm(final_norm = tensor("final_norm", BTD), x, "final_norm", B * T);
    logits = tensor("logits", 3, (int[]){B, T, V});
    linear(logits, final_norm, head(), B * T, V, D);
    free(summed);
}

/* The loss, and the gradient of the logits. */
static double *loss_and_d_logits(const int64_t *targets, int B, int T) {
    double *d_logits = tensor("d_logits", 3, (int[]){B, T, V});
    loss = tensor("loss", 0, NULL);
    for (int n = 0; n < B * T; n++) {
        double *row = logits + n * V, largest = -INFINITY, sum = 0;
        for (int c = 0; c < V; c++) largest = fmax(largest, row[c]);
        for (int c = 0; c < V; c++) sum += exp(row[c] - largest);
        *loss += (largest + log(sum) - row[targets[n]]) / (B * T);
        for (int c = 0; c < V; c++)
            d_logits[n * V + c] = (exp(row[c] - largest) / sum - (c == targets[n])) / (B * T);
    }
    return d_logits;
}

/* Add to dx what comes through one of the three projections. */
static void split_backward(double *dx, double *d_split, const double *x, const char *name, int B, int T) {
    double *merged = zeros((size_t)(B * T * D) * sizeof(double));
    heads(d_split, merged, B, T, 1);
    linear_backward(dx, merged, x, name, B * T, D, D);
    free(merged);
}

static void attention_backward(double *d_norm1, double *d_context, int i, int B, int T) {
    Block *a = &blocks[i];
    double *split = zeros((size_t)(B * T * D) * sizeof(double));
    double *d_dropped = tensor(D_NAME("att.dropout"), BHTT), *d_weights = tensor(D_NAME("att.attn_weights"), BHTT);
    double *d_scores = tensor(D_NAME("att.attn_scores"), BHTT);
    double *dv = tensor(D_NAME("att.values"), BHTK), *dk = tensor(D_NAME("att.keys"), BHTK);
    double *dq = tensor(D_NAME("att.queries"), BHTK);
    heads(split, d_context, B, T, 0);
    for (int r = 0; r < B * H * T; r++)
        for (int s = 0; s < T; s++)
            for (int j = 0; j < K; j++) {
                int key = (r / T * T + s) * K + j;
                d_dropped[r * T + s] += split[r * K + j] * a->v[key];
                dv[key] += a->dropped[r * T + s] * split[r * K + j];
            }
    dropout(d_weights, d_dropped, NAME("att.dropout"), (size_t)(B * H * T * T), 1);
    for (int r = 0; r < B * H * T; r++) {
        double along = 0;
        for (int s = 0; s < T; s++) along += a->weights[r * T + s] * d_weights[r * T + s];
        for (int s = 0; s < T; s++) {
            double d = d_scores[r * T + s] = a->weights[r * T + s] * (d_weights[r * T + s] - along);
            for (int j = 0; j < K; j++) {
                dq[r * K + j] += d * a->k[(r / T * T + s) * K + j] / sqrt(K);
                dk[(r / T * T + s) * K + j] += d * a->q[r * K + j] / sqrt(K);
            }
        }
    }
    split_backward(d_norm1, dq, a->norm1, NAME("att.W_query"), B, T);
    split_backward(d_norm1, dk, a->norm1, NAME("att.W_key"), B, T);
    split_backward(d_norm1, dv, a->norm1, NAME("att.W_value"), B, T);
    free(split);
}

/* Add the gradient of the block's input to dx. */
static void block_backward(double *dx, const double *d_out, int i, int B, int T) {
    Block *a = &blocks[i];
    int rows = B * T;
    size_t bytes = (size_t)(rows * D) * sizeof(double);
    double *d_drop_ff = tensor(D_NAME("drop_ff"), BTD), *d_residual = tensor(D_NAME("residual"), BTD);
    memcpy(d_drop_ff, d_out, bytes), memcpy(d_residual, d_out, bytes);
    double *d_ff2 = tensor(D_NAME("ff.layers.2"), BTD), *d_ff1 = tensor(D_NAME("ff.layers.1"), BTF);
    double *d_ff0 = tensor(D_NAME("ff.layers.0"), BTF), *d_norm2 = tensor(D_NAME("norm2"), BTD);
    dropout(d_ff2, d_drop_ff, NAME("drop_ff"), (size_t)(rows * D), 1);
    linear_backward(d_ff1, d_ff2, a->ff1, NAME("ff.layers.2"), rows, D, F);
    for (int n = 0; n < rows * F; n++) {
        double slope;
        gelu(a->ff0[n], &slope);
        d_ff0[n] = d_ff1[n] * slope;
    }
    linear_backward(d_norm2, d_ff0, a->norm2, NAME("ff.layers.0"), rows, F, D);
    norm_backward(d_residual, d_norm2, a->residual, NAME("norm2"), rows);
    double *d_drop_att = tensor(D_NAME("drop_att"), BTD), *d_projected = tensor(D_NAME("att.out_proj"), BTD);
    double *d_context = tensor(D_NAME("att.context_vec"), BTD), *d_norm1 = tensor(D_NAME("norm1"), BTD);
    memcpy(d_drop_att, d_residual, bytes);
    dropout(d_projected, d_drop_att, NAME("drop_att"), (size_t)(rows * D), 1);
    linear_backward(d_context, d_projected, a->context, NAME("att.out_proj"), rows, D, D);
    attention_backward(d_norm1, d_context, i, B, T);
    for (int n = 0; n < rows * D; n++) dx[n] += d_residual[n];
    norm_backward(dx, d_norm1, a->x, NAME("norm1"), rows);
}

static void backward(double *d_logits, const int64_t *ids, int B, int T) {
    double *d_final = tensor("d_final_norm", BTD), *d_out = tensor(text("d_trf_blocks.%d", L - 1), BTD);
    linear_backward(d_final, d_logits, final_norm, head(), B * T, V, D);
    norm_backward(d_out, d_final, blocks[L - 1].out, "final_norm", B * T);
    for (int i = L - 1; i >= 0; i--) {
        double *dx = tensor(i ? text("d_trf_blocks.%d", i - 1) : "d_drop_emb", BTD);
        block_backward(dx, d_out, i, B, T);
        d_out = dx;
    }
    Parameter *tokens = find("tok_emb.weight"), *positions = find("pos_emb.weight");
    double *d_tok_emb = tensor("d_tok_emb", BTD);
    double *d_pos_emb = positions ? tensor("d_pos_emb", 2, (int[]){T, D}) : NULL;
    dropout(d_tok_emb, d_out, "drop_emb", (size_t)(B * T * D), 1);
    for (int n = 0; n < B * T; n++)
        for (int d = 0; d < D; d++) {
            tokens->grad[ids[n] * D + d] += d_tok_emb[n * D + d];
            if (positions) d_pos_emb[n % T * D + d] += d_tok_emb[n * D + d];
            if (positions) positions->grad[n % T * D + d] += d_tok_emb[n * D + d];
        }
}

static void *copied(const double *values, size_t count) {
    return memcpy(zeros(count * sizeof *values), values, count * sizeof *values);
}

static void adamw(int step) {
    double lr = number("lr"), beta1 = number("beta1"), beta2 = number("beta2");
    double decay = lr * number("weight_decay"), tiny = number("eps");
    for (int k = 0; k < n_parameters; k++) {
        Parameter *p = &parameters[k];
        for (size_t i = 0; i < p->count; i++) {
            double g = p->grad[i];
            p->m[i] = beta1 * p->m[i] + (1 - beta1) * g;
            p->v[i] = beta2 * p->v[i] + (1 - beta2) * g * g;
            double root = sqrt(p->v[i]) / sqrt(1 - pow(beta2, step));
            p->value[i] -= decay * p->value[i] + lr / (1 - pow(beta1, step)) * p->m[i] / (root + tiny);
        }
        write_later(text("step%d.exp_avg.%s", step, p->name), copied(p->m, p->count), 0, p->axes, p->shape);
        write_later(text("step%d.exp_avg_sq.%s", step, p->name), copied(p->v, p->count), 0, p->axes, p->shape);
        write_later(text("step%d.%s", step, p->name), copied(p->value, p->count), 0, p->axes, p->shape);
    }
}

static void train(int step, const int64_t *ids, const int64_t *targets, int B, int T) {
    char *before = step == 1 ? "" : text("step%d.", step);
    recording = step == 1;
    for (int k = 0; k < n_parameters; k++) memset(parameters[k].grad, 0, parameters[k].count * sizeof(double));
    forward(ids, B, T, 1);
    backward(loss_and_d_logits(targets, B, T), ids, B, T);
    if (step > 1) write_later(text("%sloss", before), loss, 0, 0, NULL);
    for (int k = 0; k < n_parameters; k++) {
        Parameter *p = &parameters[k];
        write_later(text("%sd_%s", before, p->name), copied(p->grad, p->count), 0, p->axes, p->shape);
    }
    adamw(step);
}

/* Each new token is the likeliest one. There is no cache: the whole text is computed again. */
static void generate(int new_tokens) {
    size_t bytes;
    int64_t *prompt = given("generated.prompt", &bytes), *ids = zeros(bytes + (size_t)new_tokens * 8);
    int length = (int)(bytes / 8);
    memcpy(ids, prompt, bytes);
    double *found = zeros((size_t)(new_tokens * V) * sizeof(double));
    for (int n = 0; n < new_tokens; n++, length++) {
        forward(ids, 1, length, 0);
        double *row = memcpy(found + n * V, logits + (length - 1) * V, (size_t)V * sizeof(double));
        for (int c = 0; c < V; c++)
            if (row[c] > row[ids[length]]) ids[length] = c;
    }
    write_later("generated.logits", found, 0, 2, (int[]){new_tokens, V});
    write_later("generated.tokens", ids + bytes / 8, 1, 1, &new_tokens);
}

int main(int argc, char **argv) {
    if (argc != 2) fail("expected one argument:", "the folder of a case");
    folder = argv[1];
    size_t size, bytes;
    asked = read_file("case.json", &size);
    char *file = read_file("given.safetensors", &size);
    uint64_t length;
    memcpy(&length, file, 8);
    header = zeros(length + 1), data = file + 8 + length;
    memcpy(header, file + 8, length);
    C = whole("context_length"), V = whole("vocab_size"), D = whole("emb_dim"), H = whole("n_heads"), L = whole("n_layers");
    K = D / H, F = 4 * D, eps = number("norm_eps"), kept_share = 1 - number("drop_rate");
    exact_gelu = is("activation", "gelu_erf");
    if (L > MOST_BLOCKS) fail("there are too many blocks", "");
    take_all();
    if (whole("new_tokens")) generate(whole("new_tokens"));
    int64_t *ids = given("inputs", &bytes), *targets = given("targets", NULL);
    int B = whole("batch_size"), T = whole("tokens");
    for (int step = 1; step <= whole("steps"); step++) train(step, ids, targets, B, T);
    write_outputs();
    return 0;
}
