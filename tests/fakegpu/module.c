/* Modules, libraries, kernels and their attributes. The names in an image are read: from a cubin's
 * symbols, from PTX's entries. The code isn't. */
#include "graph.h"
#include "image.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fg_module {
    struct fg_head head; /* without a context it is a library */
    struct fg_image image;
    struct fg_kernel **kernels;
    u32 kernel_count;
    struct fg_global {
        const struct fg_symbol *symbol;
        int device;
        u64 base;
        struct fg_global *next;
    } * globals;
};

_Static_assert(sizeof(struct fg_module) <= FG_CELL, "a module fits in a cell");

static struct fg_kernel *new_kernel(struct fg_module *module, const char *name) {
    struct fg_kernel *kernel = fg_new(FG_KERNEL, module->head.context);
    kernel->module = module;
    kernel->name = strdup(name);
    kernel->attributes[0] = 1024;  /* threads a block */
    kernel->attributes[4] = 32;    /* registers */
    kernel->attributes[5] = 80;    /* PTX version */
    kernel->attributes[6] = 90;    /* binary version */
    kernel->attributes[8] = 49152; /* dynamic shared memory */
    kernel->attributes[9] = -1;    /* carve-out */
    kernel->block[0] = kernel->block[1] = kernel->block[2] = 1;
    module->kernels = realloc(module->kernels, (module->kernel_count + 1) * sizeof kernel);
    if (!module->kernels || !kernel->name)
        abort();
    module->kernels[module->kernel_count++] = kernel;
    return kernel;
}

static CUresult load(struct fg_context *context, const void *image, struct fg_module **module) {
    struct fg_image read;
    if (!module || !image)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_read_image(image, &read))
        return CUDA_ERROR_INVALID_IMAGE;
    struct fg_module *made = fg_new(FG_MODULE, fg_root(context));
    made->image = read;
    for (size_t i = 0; i < read.count; i++)
        if (read.symbols[i].kernel)
            new_kernel(made, read.symbols[i].name);
    *module = made;
    return CUDA_SUCCESS;
}

static CUresult load_file(struct fg_context *context, const char *path, struct fg_module **module) {
    char *content;
    size_t size;
    if (!module || !path)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_read_file(path, &content, &size))
        return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult result = load(context, content, module);
    free(content);
    return result;
}

void fg_delete_module_locked(struct fg_module *module) {
    for (u32 i = 0; i < module->kernel_count; i++) {
        free(module->kernels[i]->name);
        fg_delete(module->kernels[i]);
    }
    for (struct fg_global *global = module->globals, *next; global; global = next) {
        struct fg_allocation *a = fg_find_locked(global->base);
        next = global->next;
        if (a)
            fg_free_locked(a, false);
        free(global);
    }
    free(module->kernels);
    fg_free_image(&module->image);
    fg_delete(module);
}

static struct fg_kernel *find_kernel(struct fg_module *module, const char *name) {
    for (u32 i = 0; i < module->kernel_count; i++)
        if (strcmp(module->kernels[i]->name, name) == 0)
            return module->kernels[i];
    /* What an image that can't be read holds is not known: it has whatever it is asked for. */
    return module->image.opaque ? new_kernel(module, name) : NULL;
}

/* A global variable gets its memory on a device when it is first asked for. */
static CUresult find_global(struct fg_context *context, struct fg_module *module, const char *name,
                            CUdeviceptr *base, size_t *bytes) {
    CUresult result = CUDA_ERROR_NOT_FOUND;
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&fg_lock);
    for (size_t i = 0; i < module->image.count; i++) {
        const struct fg_symbol *symbol = &module->image.symbols[i];
        if (symbol->kernel || strcmp(symbol->name, name) != 0)
            continue;
        struct fg_global *global = module->globals;
        while (global && (global->symbol != symbol || global->device != context->device))
            global = global->next;
        result = CUDA_SUCCESS;
        if (!global) {
            struct fg_request request = {
                module->head.context, context->device, FG_GLOBAL, symbol->bytes, 0, 0, NULL};
            u64 made;
            result = fg_allocate_locked(&request, &made);
            if (result)
                break;
            global = calloc(1, sizeof *global);
            if (!global)
                abort();
            *global = (struct fg_global){symbol, context->device, made, module->globals};
            module->globals = global;
            memset((void *)made, 0, symbol->bytes);
            if (symbol->content)
                memcpy((void *)made, symbol->content, symbol->bytes);
        }
        if (base)
            *base = global->base;
        if (bytes)
            *bytes = symbol->bytes;
        break;
    }
    pthread_mutex_unlock(&fg_lock);
    return result;
}

CUresult do_cuModuleLoadData(struct fg_call *c, CUmodule *module, const void *image) {
    return load(c->context, image, module);
}

CUresult do_cuModuleLoadDataEx(struct fg_call *c, CUmodule *module, const void *image,
                               unsigned count, int *options, void **values) {
    fg_empty_logs(count, options, values);
    return load(c->context, image, module);
}

CUresult do_cuModuleLoadFatBinary(struct fg_call *c, CUmodule *module, const void *image) {
    return load(c->context, image, module);
}

CUresult do_cuModuleLoad(struct fg_call *c, CUmodule *module, const char *path) {
    return load_file(c->context, path, module);
}

CUresult do_cuModuleUnload(struct fg_call *c, CUmodule module) {
    if (!fg_is(module, FG_MODULE) || !module->head.context)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&fg_lock);
    fg_delete_module_locked(module);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuModuleGetLoadingMode(struct fg_call *c, int *mode) {
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = 1; /* eager */
    return CUDA_SUCCESS;
}

static CUresult kernel_of(struct fg_module *module, const char *name, struct fg_kernel **kernel) {
    if (!kernel || !name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(module, FG_MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&fg_lock);
    struct fg_kernel *found = find_kernel(module, name);
    pthread_mutex_unlock(&fg_lock);
    if (!found)
        return CUDA_ERROR_NOT_FOUND;
    *kernel = found;
    return CUDA_SUCCESS;
}

static CUresult kernels_of(struct fg_module *module, struct fg_kernel **kernels, unsigned count) {
    if (!kernels)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(module, FG_MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    for (unsigned i = 0; i < count && i < module->kernel_count; i++)
        kernels[i] = module->kernels[i];
    return CUDA_SUCCESS;
}

static CUresult count_of(const struct fg_module *module, unsigned *count) {
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(module, FG_MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    *count = module->kernel_count;
    return CUDA_SUCCESS;
}

CUresult do_cuModuleGetFunction(struct fg_call *c, CUfunction *function, CUmodule module,
                                const char *name) {
    return kernel_of(module, name, function);
}

CUresult do_cuModuleGetFunctionCount(struct fg_call *c, unsigned *count, CUmodule module) {
    return count_of(module, count);
}

CUresult do_cuModuleEnumerateFunctions(struct fg_call *c, CUfunction *functions, unsigned count,
                                       CUmodule module) {
    return kernels_of(module, functions, count);
}

CUresult do_cuModuleGetGlobal_v2(struct fg_call *c, CUdeviceptr *pointer, size_t *bytes,
                                 CUmodule module, const char *name) {
    if (!fg_is(module, FG_MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    return find_global(c->context, module, name, pointer, bytes);
}

/* Globals lie above 4 GiB: their 32-bit addresses don't exist. */
CUresult do_cuModuleGetGlobal(struct fg_call *c, CUdeviceptr32 *pointer, unsigned *bytes,
                              CUmodule module, const char *name) {
    CUdeviceptr base;
    size_t size;
    CUresult result = do_cuModuleGetGlobal_v2(c, &base, &size, module, name);
    if (result)
        return result;
    if (pointer)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (bytes)
        *bytes = size;
    return CUDA_SUCCESS;
}

CUresult do_cuLibraryLoadData(struct fg_call *c, CUlibrary *library, const void *image,
                              int *options, void **values, unsigned count, int *library_options,
                              void **library_values, unsigned library_count) {
    fg_empty_logs(count, options, values);
    return load(NULL, image, library);
}

CUresult do_cuLibraryLoadFromFile(struct fg_call *c, CUlibrary *library, const char *path,
                                  int *options, void **values, unsigned count, int *library_options,
                                  void **library_values, unsigned library_count) {
    return load_file(NULL, path, library);
}

CUresult do_cuLibraryUnload(struct fg_call *c, CUlibrary library) {
    if (!fg_is(library, FG_MODULE) || library->head.context)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&fg_lock);
    fg_delete_module_locked(library);
    pthread_mutex_unlock(&fg_lock);
    return CUDA_SUCCESS;
}

CUresult do_cuLibraryGetKernel(struct fg_call *c, CUkernel *kernel, CUlibrary library,
                               const char *name) {
    return kernel_of(library, name, kernel);
}

CUresult do_cuLibraryGetKernelCount(struct fg_call *c, unsigned *count, CUlibrary library) {
    return count_of(library, count);
}

CUresult do_cuLibraryEnumerateKernels(struct fg_call *c, CUkernel *kernels, unsigned count,
                                      CUlibrary library) {
    return kernels_of(library, kernels, count);
}

/* A library's kernels launch in any context, so the library is its own module, and a kernel its
 * own function. */
CUresult do_cuLibraryGetModule(struct fg_call *c, CUmodule *module, CUlibrary library) {
    if (!module)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(library, FG_MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    *module = library;
    return CUDA_SUCCESS;
}

CUresult do_cuLibraryGetGlobal(struct fg_call *c, CUdeviceptr *pointer, size_t *bytes,
                               CUlibrary library, const char *name) {
    if (!fg_is(library, FG_MODULE))
        return CUDA_ERROR_INVALID_HANDLE;
    return find_global(c->context, library, name, pointer, bytes);
}

CUresult do_cuKernelGetFunction(struct fg_call *c, CUfunction *function, CUkernel kernel) {
    if (!function)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(kernel, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    *function = kernel;
    return CUDA_SUCCESS;
}

CUresult do_cuKernelGetLibrary(struct fg_call *c, CUlibrary *library, CUkernel kernel) {
    if (!library)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(kernel, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    *library = kernel->module;
    return CUDA_SUCCESS;
}

static CUresult name_of(const struct fg_kernel *kernel, const char **name) {
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(kernel, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    *name = kernel->name;
    return CUDA_SUCCESS;
}

static CUresult get_attribute(const struct fg_kernel *kernel, int attribute, int *value) {
    if (!value || attribute < 0 || attribute > 15)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(kernel, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    *value = kernel->attributes[attribute];
    return CUDA_SUCCESS;
}

static CUresult set_attribute(struct fg_kernel *kernel, int attribute, int value) {
    if (attribute < 8 || attribute > 15 || attribute == 10) /* the others are the compiler's */
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(kernel, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (attribute == 8 && (value < 0 || value > 232448))
        return CUDA_ERROR_INVALID_VALUE;
    kernel->attributes[attribute] = value;
    return CUDA_SUCCESS;
}

static CUresult set_cache(struct fg_kernel *kernel, int config) {
    if (config < 0 || config > 3)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(kernel, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    kernel->cache_config = config;
    return CUDA_SUCCESS;
}

static CUresult parameter_of(const struct fg_kernel *kernel, size_t index, size_t *offset,
                             size_t *size) {
    if (!offset)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(kernel, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    return fg_image_parameter(&kernel->module->image, kernel->name, index, offset, size)
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuKernelGetName(struct fg_call *c, const char **name, CUkernel kernel) {
    return name_of(kernel, name);
}

CUresult do_cuKernelGetAttribute(struct fg_call *c, int *value, int attribute, CUkernel kernel,
                                 CUdevice device) {
    return fg_valid_device(device) ? get_attribute(kernel, attribute, value)
                                   : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuKernelSetAttribute(struct fg_call *c, int attribute, int value, CUkernel kernel,
                                 CUdevice device) {
    return fg_valid_device(device) ? set_attribute(kernel, attribute, value)
                                   : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuKernelSetCacheConfig(struct fg_call *c, CUkernel kernel, int config,
                                   CUdevice device) {
    return fg_valid_device(device) ? set_cache(kernel, config) : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuKernelGetParamInfo(struct fg_call *c, CUkernel kernel, size_t index, size_t *offset,
                                 size_t *size) {
    return parameter_of(kernel, index, offset, size);
}

CUresult do_cuFuncGetAttribute(struct fg_call *c, int *value, int attribute, CUfunction function) {
    return get_attribute(function, attribute, value);
}

CUresult do_cuFuncSetAttribute(struct fg_call *c, CUfunction function, int attribute, int value) {
    return set_attribute(function, attribute, value);
}

CUresult do_cuFuncSetCacheConfig(struct fg_call *c, CUfunction function, int config) {
    return set_cache(function, config);
}

CUresult do_cuFuncSetSharedMemConfig(struct fg_call *c, CUfunction function, int config) {
    if (config < 0 || config > 2)
        return CUDA_ERROR_INVALID_VALUE;
    return fg_is(function, FG_KERNEL) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult do_cuFuncGetModule(struct fg_call *c, CUmodule *module, CUfunction function) {
    return do_cuKernelGetLibrary(c, module, function);
}

CUresult do_cuFuncGetName(struct fg_call *c, const char **name, CUfunction function) {
    return name_of(function, name);
}

CUresult do_cuFuncGetParamInfo(struct fg_call *c, CUfunction function, size_t index, size_t *offset,
                               size_t *size) {
    return parameter_of(function, index, offset, size);
}

CUresult do_cuFuncIsLoaded(struct fg_call *c, int *state, CUfunction function) {
    if (!state)
        return CUDA_ERROR_INVALID_VALUE;
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    *state = 1;
    return CUDA_SUCCESS;
}

CUresult do_cuFuncLoad(struct fg_call *c, CUfunction function) {
    return fg_is(function, FG_KERNEL) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* How launches were prepared before cuLaunchKernel. Arguments are taken and have no use. */
CUresult do_cuFuncSetBlockShape(struct fg_call *c, CUfunction function, int x, int y, int z) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    if (x <= 0 || y <= 0 || z <= 0 || (long)x * y * z > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    function->block[0] = x;
    function->block[1] = y;
    function->block[2] = z;
    return CUDA_SUCCESS;
}

CUresult do_cuFuncSetSharedSize(struct fg_call *c, CUfunction function, unsigned bytes) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    function->shared = bytes;
    return CUDA_SUCCESS;
}

static CUresult argument(const struct fg_kernel *function, int offset, size_t bytes) {
    if (!fg_is(function, FG_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    return offset < 0 || offset + bytes > 4096 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult do_cuParamSetSize(struct fg_call *c, CUfunction function, unsigned bytes) {
    return argument(function, 0, bytes);
}

CUresult do_cuParamSeti(struct fg_call *c, CUfunction function, int offset, unsigned value) {
    return argument(function, offset, sizeof value);
}

CUresult do_cuParamSetf(struct fg_call *c, CUfunction function, int offset, float value) {
    return argument(function, offset, sizeof value);
}

CUresult do_cuParamSetv(struct fg_call *c, CUfunction function, int offset, void *data,
                        unsigned bytes) {
    return data ? argument(function, offset, bytes) : CUDA_ERROR_INVALID_VALUE;
}
