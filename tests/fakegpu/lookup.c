/* Functions by name, and errors by number. */
#include "internal.h"
#include <string.h>

enum { LEGACY = 1, PER_THREAD = 2 };                    /* flags */
enum { FOUND = 0, NOT_FOUND = 1, VERSION_TOO_LOW = 2 }; /* what became of a symbol */

/* The exports as a client sees them: the stubs, where there are stubs. */
#define SYMBOL(name, base, since, per_thread) extern char export_##name[] __asm__(#name);
#pragma GCC visibility push(default)
#include "symbols.inc"
#pragma GCC visibility pop
#undef SYMBOL

static const struct {
    const char *base;
    int since;
    bool per_thread;
    void *address;
} symbols[] = {
#define SYMBOL(name, base, since, per_thread) {#base, since, per_thread, export_##name},
#include "symbols.inc"
#undef SYMBOL
};

/* The newest variant that the asked version knows. On request it is a per-thread one, of functions
 * that have such. */
static void *find(const char *name, int version, bool per_thread, int *status) {
    bool known[2] = {false, false};
    int best[2] = {-1, -1};
    for (int i = 0; i < FN_COUNT; i++) {
        int form = symbols[i].per_thread;
        if (strcmp(symbols[i].base, name) != 0 || (int)fg_state->driver_version < symbols[i].since)
            continue;
        known[form] = true;
        if (symbols[i].since <= version &&
            (best[form] < 0 || symbols[i].since >= symbols[best[form]].since))
            best[form] = i;
    }
    int form = per_thread && known[1];
    *status = best[form] >= 0 ? FOUND : known[form] ? VERSION_TOO_LOW : NOT_FOUND;
    return best[form] >= 0 ? symbols[best[form]].address : NULL;
}

CUresult do_cuGetProcAddress_v2(struct fg_call *c, const char *symbol, void **pointer, int version,
                                u64 flags, int *status) {
    int found;
    if (!symbol || !pointer || flags > (LEGACY | PER_THREAD))
        return CUDA_ERROR_INVALID_VALUE;
    *pointer = find(symbol, version, flags & PER_THREAD, &found);
    if (status)
        *status = found;
    return CUDA_SUCCESS;
}

CUresult do_cuGetProcAddress(struct fg_call *c, const char *symbol, void **pointer, int version,
                             u64 flags) {
    int found;
    if (!symbol || !pointer || flags > (LEGACY | PER_THREAD))
        return CUDA_ERROR_INVALID_VALUE;
    void *address = find(symbol, version, flags & PER_THREAD, &found);
    if (!address)
        return CUDA_ERROR_NOT_FOUND;
    *pointer = address;
    return CUDA_SUCCESS;
}

/* The private tables that NVIDIA's own libraries ask for are not simulated. */
CUresult do_cuGetExportTable(struct fg_call *c, const void **table, const void *id) {
    return CUDA_ERROR_NOT_FOUND;
}

static const struct {
    CUresult error;
    const char *name;
    const char *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "not initialized"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "device busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no device"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "invalid kernel image"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid context"},
    {202, "CUDA_ERROR_CONTEXT_ALREADY_CURRENT", "context is current already"},
    {205, "CUDA_ERROR_MAP_FAILED", "mapping failed"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image for the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error"},
    {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "no peer access between these devices"},
    {218, "CUDA_ERROR_INVALID_PTX", "invalid PTX"},
    {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "uncorrectable NVLink error"},
    {301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "operating system call failed"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "illegal state"},
    {500, "CUDA_ERROR_NOT_FOUND", "name not found"},
    {600, "CUDA_ERROR_NOT_READY", "not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "illegal memory access"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources for a launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is enabled already"},
    {705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access is not enabled"},
    {708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "the primary context is active"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "host memory is registered already"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "host memory is not registered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "the launch failed"},
    {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks for a cooperative launch"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "not supported"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not permitted while capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "the capture is invalid by an earlier error"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "would merge two captures"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture didn't begin in this stream"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "the capture has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "a dependency would leave the capture"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "would depend on the capture by the legacy stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "the event was last recorded while capturing"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "the capture belongs to another thread"},
    {909, "CUDA_ERROR_TIMEOUT", "the wait timed out"},
    {910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "the graph doesn't fit for an update"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult text_of(CUresult error, const char **text, bool name) {
    if (!text)
        return CUDA_ERROR_INVALID_VALUE;
    *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error)
            *text = name ? errors[i].name : errors[i].text;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuGetErrorName(struct fg_call *c, CUresult error, const char **text) {
    return text_of(error, text, true);
}

CUresult do_cuGetErrorString(struct fg_call *c, CUresult error, const char **text) {
    return text_of(error, text, false);
}
