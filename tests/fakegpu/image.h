/* What is read of the images of modules: the names of kernels and globals. */
#ifndef FAKEGPU_IMAGE_H
#define FAKEGPU_IMAGE_H

#include "internal.h"

struct fg_symbol {
    char *name;
    bool kernel;
    u64 bytes;           /* of a global */
    const void *content; /* of an initialised one, in the image's copy */
};

struct fg_image {
    char *copy;
    size_t size;
    struct fg_symbol *symbols;
    size_t count;
    bool opaque; /* a form whose names can't be read */
};

#pragma GCC visibility push(hidden)
bool fg_read_image(const void *data, struct fg_image *image);
void fg_free_image(struct fg_image *image);
bool fg_image_parameter(const struct fg_image *image, const char *kernel, size_t index,
                        size_t *offset, size_t *size);
bool fg_read_file(const char *path, char **content, size_t *size);
void fg_empty_logs(unsigned count, const int *options, void **values);
#pragma GCC visibility pop

#endif
