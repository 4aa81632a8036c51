/* The types of the CUDA driver interface, as far as the simulated driver needs them. Handles point
 * to the driver's own objects; structures have the layout of the interface, but names of their own.
 */
#ifndef FAKEGPU_CUDA_TYPES_H
#define FAKEGPU_CUDA_TYPES_H

#include "state.h"
#include <stdbool.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef unsigned int CUdeviceptr32;
typedef unsigned long long CUmemGenericAllocationHandle;
typedef struct fg_context *CUcontext;
typedef struct fg_stream *CUstream;
typedef struct fg_event *CUevent;
typedef struct fg_module *CUmodule;
typedef struct fg_module *CUlibrary;
typedef struct fg_kernel *CUfunction;
typedef struct fg_kernel *CUkernel;
typedef struct fg_array *CUarray;
typedef struct fg_mipmap *CUmipmappedArray;
typedef struct fg_pool *CUmemoryPool;
typedef struct fg_graph *CUgraph;
typedef struct fg_node *CUgraphNode;
typedef struct fg_exec *CUgraphExec;
typedef struct fg_link *CUlinkState;
typedef struct fg_user_object *CUuserObject;
typedef struct fg_green *CUgreenCtx;
typedef struct fg_resources *CUdevResourceDesc;

typedef struct {
    u8 bytes[16];
} CUuuid;

/* The errors that the simulated driver returns by itself; any other can be injected. */
enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_PEER_ACCESS_UNSUPPORTED = 217,
    CUDA_ERROR_FILE_NOT_FOUND = 301,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
    CUDA_ERROR_PEER_ACCESS_NOT_ENABLED = 705,
    CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE = 708,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
    CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_MERGE = 902,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE = 910,
    CUDA_ERROR_INVALID_RESOURCE_TYPE = 914,
    CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION = 915,
    CUDA_ERROR_UNKNOWN = 999,
};

/* Types of memory, in copies and in pointer attributes. */
enum { FG_TYPE_HOST = 1, FG_TYPE_DEVICE = 2, FG_TYPE_ARRAY = 3, FG_TYPE_UNIFIED = 4 };

struct fg_location {
    int type;
    int id;
};

enum { FG_LOCATION_DEVICE = 1, FG_LOCATION_HOST = 2 };

struct fg_access {
    struct fg_location location;
    int flags;
};

struct fg_allocation_properties {
    int type;
    int requested_handle_types;
    struct fg_location location;
    void *security;
    unsigned char compression;
    unsigned char rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
};

struct fg_pool_properties {
    int allocation_type;
    int handle_types;
    struct fg_location location;
    void *security;
    size_t max_size;
    unsigned short usage;
    unsigned char reserved[54];
};

struct fg_device_properties {
    int max_threads_per_block;
    int max_threads_dim[3];
    int max_grid_size[3];
    int shared_bytes_per_block;
    int constant_bytes;
    int warp;
    int max_pitch;
    int registers_per_block;
    int clock_khz;
    int texture_alignment;
};

struct fg_array_descriptor32 {
    unsigned width;
    unsigned height;
    int format;
    unsigned channels;
};

struct fg_array_descriptor {
    size_t width;
    size_t height;
    int format;
    unsigned channels;
};

struct fg_array3d_descriptor32 {
    unsigned width;
    unsigned height;
    unsigned depth;
    int format;
    unsigned channels;
    unsigned flags;
};

struct fg_array3d_descriptor {
    size_t width;
    size_t height;
    size_t depth;
    int format;
    unsigned channels;
    unsigned flags;
};

struct fg_copy2d32 {
    unsigned source_x, source_y;
    int source_type;
    const void *source_host;
    CUdeviceptr32 source_device;
    CUarray source_array;
    unsigned source_pitch;
    unsigned target_x, target_y;
    int target_type;
    void *target_host;
    CUdeviceptr32 target_device;
    CUarray target_array;
    unsigned target_pitch;
    unsigned width;
    unsigned height;
};

struct fg_copy2d {
    size_t source_x, source_y;
    int source_type;
    const void *source_host;
    CUdeviceptr source_device;
    CUarray source_array;
    size_t source_pitch;
    size_t target_x, target_y;
    int target_type;
    void *target_host;
    CUdeviceptr target_device;
    CUarray target_array;
    size_t target_pitch;
    size_t width;
    size_t height;
};

struct fg_copy3d32 {
    unsigned source_x, source_y, source_z, source_level;
    int source_type;
    const void *source_host;
    CUdeviceptr32 source_device;
    CUarray source_array;
    void *reserved0;
    unsigned source_pitch, source_height;
    unsigned target_x, target_y, target_z, target_level;
    int target_type;
    void *target_host;
    CUdeviceptr32 target_device;
    CUarray target_array;
    void *reserved1;
    unsigned target_pitch, target_height;
    unsigned width, height, depth;
};

/* In the peer form reserved0 and reserved1 are the contexts of the source and the target. */
struct fg_copy3d {
    size_t source_x, source_y, source_z, source_level;
    int source_type;
    const void *source_host;
    CUdeviceptr source_device;
    CUarray source_array;
    void *reserved0;
    size_t source_pitch, source_height;
    size_t target_x, target_y, target_z, target_level;
    int target_type;
    void *target_host;
    CUdeviceptr target_device;
    CUarray target_array;
    void *reserved1;
    size_t target_pitch, target_height;
    size_t width, height, depth;
};

struct fg_set_params {
    CUdeviceptr target;
    size_t pitch;
    unsigned value;
    unsigned element;
    size_t width;
    size_t height;
};

struct fg_kernel_params {
    CUfunction function;
    unsigned grid[3];
    unsigned block[3];
    unsigned shared;
    void **params;
    void **extra;
};

struct fg_kernel_params_v2 {
    struct fg_kernel_params common;
    CUkernel kernel;
    CUcontext context;
};

struct fg_host_params {
    void (*function)(void *);
    void *data;
};

struct fg_alloc_node_params {
    struct fg_pool_properties pool;
    const struct fg_access *access;
    size_t access_count;
    size_t bytes;
    CUdeviceptr pointer;
};

struct fg_node_params {
    int type;
    int reserved0[3];
    union {
        long long padding[29];
        struct fg_kernel_params_v2 kernel;
        struct {
            int flags;
            int reserved;
            CUcontext context;
            struct fg_copy3d copy;
        } copy;
        struct {
            struct fg_set_params set;
            CUcontext context;
        } set;
        struct fg_host_params host;
        struct {
            CUgraph graph;
        } child;
        struct {
            CUevent event;
        } event;
        struct fg_alloc_node_params allocation;
        struct {
            CUdeviceptr pointer;
        } free;
    };
    long long reserved2;
};

struct fg_instantiate_params {
    u64 flags;
    CUstream upload_stream;
    CUgraphNode failed;
    int result;
};

struct fg_update_result {
    int result;
    CUgraphNode failed;
    CUgraphNode failed_from;
};

/* What green contexts are made of. The interface leaves the padding to the driver. */
struct fg_resource {
    int type;
    int device;
    unsigned char padding[88];
    struct {
        unsigned count;
        unsigned least;
        unsigned alignment;
    } multiprocessors;
    unsigned char reserved[36];
};

_Static_assert(sizeof(struct fg_resource) == 144, "as large as the interface has it");

struct fg_launch_attribute {
    int id;
    char padding[4];
    union {
        char bytes[64];
        int number;
    };
};

struct fg_launch_config {
    unsigned grid[3];
    unsigned block[3];
    unsigned shared;
    CUstream stream;
    struct fg_launch_attribute *attributes;
    unsigned attribute_count;
};

struct fg_multi_launch {
    CUfunction function;
    unsigned grid[3];
    unsigned block[3];
    unsigned shared;
    CUstream stream;
    void **params;
};

#endif
