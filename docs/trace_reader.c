/* Reads a trace (docs/trace-format.md) and prints each tensor: name, dtype, shape, sum of its values.
 *
 *     cc -std=c99 -O2 -o trace_reader trace_reader.c && ./trace_reader FILE
 * Exit status 2, with one line on stderr, for a file that is no trace, damaged, or of another version.
 * The machine is taken to be little-endian, as the file is.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_TENSORS 100000
#define MOST_AXES 8

typedef struct {
    char *name, dtype[8];
    int axes;
    uint64_t shape[MOST_AXES], begin, end; /* bytes, from the first byte after the header */
} Tensor;

static Tensor tensors[MOST_TENSORS];
static int count;
static char *order, *format, *version, *at; /* at: where in the header we are */

static void fail(const char *why) {
    fprintf(stderr, "trace_reader: %s\n", why);
    exit(2);
}

static char look(void) {
    while (*at == ' ') at++; /* the header may end with some */
    return *at;
}

static void expect(char c) {
    if (look() != c) fail("the header is damaged");
    at++;
}

/* A JSON string, decoded in place. Every escape that a trace holds stands for one ASCII character or is kept as '?'. */
static char *string(void) {
    expect('"');
    char *text = at, *to = at;
    for (; *at != '"'; at++) {
        if (!*at) fail("the header is damaged");
        if (*at != '\\') { *to++ = *at; continue; }
        at++;
        if (*at == 'n') *to++ = '\n';
        else if (*at == '"' || *at == '\\' || *at == '/') *to++ = *at;
        else if (*at == 'u' && strlen(at) > 4) { at += 4; *to++ = '?'; }
        else fail("the header is damaged");
    }
    at++;
    *to = 0;
    return text;
}

static int numbers(uint64_t *into, int most) {
    int n = 0;
    expect('[');
    while (look() != ']') {
        if (n) expect(',');
        if (n == most || look() < '0' || *at > '9') fail("the header is damaged");
        into[n++] = strtoull(at, &at, 10);
    }
    at++;
    return n;
}

static void metadata(void) {
    expect('{');
    while (look() != '}') {
        char *key = string();
        expect(':');
        char *text = string();
        char **kept = !strcmp(key, "format") ? &format : !strcmp(key, "version") ? &version : &order;
        if (kept != &order || !strcmp(key, "order")) *kept = text;
        if (look() == ',') at++;
    }
    at++;
}

static void tensor(char *name) {
    if (count == MOST_TENSORS) fail("the file has too many tensors");
    Tensor *t = &tensors[count++];
    uint64_t offsets[2];
    t->name = name;
    expect('{');
    while (look() != '}') {
        char *key = string();
        expect(':');
        if (!strcmp(key, "dtype")) snprintf(t->dtype, sizeof t->dtype, "%s", string());
        else if (!strcmp(key, "shape")) t->axes = numbers(t->shape, MOST_AXES);
        else if (!strcmp(key, "data_offsets") && numbers(offsets, 2) == 2) { t->begin = offsets[0]; t->end = offsets[1]; }
        else fail("the header is damaged");
        if (look() == ',') at++;
    }
    at++;
}

static double value(const Tensor *t, const unsigned char *data, uint64_t i) {
    float f; double d; int64_t n;
    if (!strcmp(t->dtype, "F64")) { memcpy(&d, data + 8 * i, 8); return d; }
    if (!strcmp(t->dtype, "F32")) { memcpy(&f, data + 4 * i, 4); return f; }
    if (!strcmp(t->dtype, "I64")) { memcpy(&n, data + 8 * i, 8); return (double)n; }
    if (!strcmp(t->dtype, "BOOL")) return data[i];
    fail("a tensor has a dtype that no trace has");
    return 0; /* never */
}

int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!file) fail("give the name of a trace that can be read");
    uint64_t header_size = 0, size;
    fseek(file, 0, SEEK_END);
    size = (uint64_t)ftell(file);
    rewind(file); /* fseeko and ftello are needed where long has 32 bits and the trace more than 2 GiB */
    if (fread(&header_size, 8, 1, file) != 1 || header_size > size - 8) fail("the file is truncated or no trace");
    uint64_t bytes = size - 8 - header_size;
    char *header = calloc(header_size + 1, 1);
    unsigned char *data = malloc(bytes + 1);
    if (!header || !data) fail("memory is short");
    if (fread(header, 1, header_size, file) + fread(data, 1, bytes, file) != size - 8) fail("the file cannot be read");
    at = header;
    expect('{');
    while (look() != '}') {
        char *name = string();
        expect(':');
        if (strcmp(name, "__metadata__")) tensor(name); else metadata();
        if (look() == ',') at++;
    }
    if (!format || strcmp(format, "numpygpt.trace") || !order) fail("the file is no trace");
    if (!version || strcmp(version, "1")) fail("the trace is of another version; this reader knows version 1");
    for (char *name = strtok(order, "\n"); name; name = strtok(NULL, "\n")) {
        int k = 0;
        while (k < count && strcmp(tensors[k].name, name)) k++;
        if (k == count) fail("a tensor that the order names is missing");
        const Tensor *t = &tensors[k];
        uint64_t n = 1, size_of = !strcmp(t->dtype, "F32") ? 4 : !strcmp(t->dtype, "BOOL") ? 1 : 8;
        for (int axis = 0; axis < t->axes; axis++) n *= t->shape[axis];
        if (t->end > bytes || t->begin > t->end || t->end - t->begin != n * size_of) fail("the file is truncated");
        double sum = 0;
        for (uint64_t i = 0; i < n; i++) sum += value(t, data + t->begin, i);
        printf("%s %s [", t->name, t->dtype);
        for (int axis = 0; axis < t->axes; axis++) printf(axis ? ", %llu" : "%llu", (unsigned long long)t->shape[axis]);
        printf("] %.17g\n", sum);
    }
    return 0;
}
