/* The linker: takes images, and gives one that names all their kernels and globals. */
#include "image.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fg_link {
    struct fg_head head;
    char *text; /* PTX that declares what was added */
    size_t size;
    FILE *stream;
};

static void open_link(struct fg_link *link) {
    link->stream = open_memstream(&link->text, &link->size);
    if (!link->stream)
        abort();
    fprintf(link->stream, ".version 8.0\n");
}

void fg_delete_link(struct fg_link *link) {
    fclose(link->stream);
    free(link->text);
    fg_delete(link);
}

CUresult do_cuLinkCreate_v2(struct fg_call *c, unsigned count, int *options, void **values,
                            CUlinkState *link) {
    if (!link)
        return CUDA_ERROR_INVALID_VALUE;
    fg_empty_logs(count, options, values);
    *link = fg_new(FG_LINK, c->context);
    open_link(*link);
    return CUDA_SUCCESS;
}

CUresult do_cuLinkAddData_v2(struct fg_call *c, CUlinkState link, int type, void *data, size_t size,
                             const char *name, unsigned count, int *options, void **values) {
    struct fg_image image;
    if (!fg_is(link, FG_LINK))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!data || !size)
        return CUDA_ERROR_INVALID_VALUE;
    char *copy = malloc(size + 1); /* PTX may come without its end */
    if (!copy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(copy, data, size);
    copy[size] = 0;
    bool read = fg_read_image(copy, &image);
    free(copy);
    if (!read || image.opaque) {
        if (read)
            fg_free_image(&image);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    for (size_t i = 0; i < image.count; i++) {
        const struct fg_symbol *symbol = &image.symbols[i];
        if (symbol->kernel)
            fprintf(link->stream, ".visible .entry %s()\n", symbol->name);
        else
            fprintf(link->stream, ".visible .global .b8 %s[%llu];\n", symbol->name,
                    (unsigned long long)symbol->bytes);
    }
    fg_free_image(&image);
    return CUDA_SUCCESS;
}

CUresult do_cuLinkAddFile_v2(struct fg_call *c, CUlinkState link, int type, const char *path,
                             unsigned count, int *options, void **values) {
    char *content;
    size_t size;
    if (!path)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_read_file(path, &content, &size))
        return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult result =
        do_cuLinkAddData_v2(c, link, type, content, size, path, count, options, values);
    free(content);
    return result;
}

CUresult do_cuLinkComplete(struct fg_call *c, CUlinkState link, void **image, size_t *size) {
    if (!fg_is(link, FG_LINK))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!image)
        return CUDA_ERROR_INVALID_VALUE;
    fflush(link->stream);
    *image = link->text;
    if (size)
        *size = link->size + 1;
    return CUDA_SUCCESS;
}

CUresult do_cuLinkDestroy(struct fg_call *c, CUlinkState link) {
    if (!fg_is(link, FG_LINK))
        return CUDA_ERROR_INVALID_HANDLE;
    fg_delete_link(link);
    return CUDA_SUCCESS;
}
