/* The parts of the CUDA Driver API's structures that a handler reads, from the API reference.
 * The _narrow forms are those from before CUDA 3.2, with 32-bit sizes and device pointers. */
#ifndef GPUBPF_CUDA_H
#define GPUBPF_CUDA_H

enum memory_type { MEMORY_HOST = 1, MEMORY_DEVICE = 2, MEMORY_ARRAY = 3, MEMORY_UNIFIED = 4 };

#define LOCATION_DEVICE 1     /* CU_MEM_LOCATION_TYPE_DEVICE */
#define PROPERTIES_LOCATION 8 /* in CUmemAllocationProp and CUmemPoolProps */

struct location {
    u32 type, id;
};

struct array_2d {
    u64 width, height;
    u32 format, channels;
};

struct array_2d_narrow {
    u32 width, height;
    u32 format, channels;
};

struct array_3d {
    u64 width, height, depth;
    u32 format, channels, flags;
};

struct array_3d_narrow {
    u32 width, height, depth;
    u32 format, channels, flags;
};

struct copy_2d {
    u64 src_x, src_y;
    u32 src_type;
    u64 src_host, src_device, src_array, src_pitch;
    u64 dst_x, dst_y;
    u32 dst_type;
    u64 dst_host, dst_device, dst_array, dst_pitch;
    u64 width, height;
};

struct copy_2d_narrow {
    u32 src_x, src_y;
    u32 src_type;
    u64 src_host;
    u32 src_device;
    u64 src_array;
    u32 src_pitch;
    u32 dst_x, dst_y;
    u32 dst_type;
    u64 dst_host;
    u32 dst_device;
    u64 dst_array;
    u32 dst_pitch;
    u32 width, height;
};

struct copy_3d {
    u64 src_x, src_y, src_z, src_lod;
    u32 src_type;
    u64 src_host, src_device, src_array, src_context, src_pitch, src_height;
    u64 dst_x, dst_y, dst_z, dst_lod;
    u32 dst_type;
    u64 dst_host, dst_device, dst_array, dst_context, dst_pitch, dst_height;
    u64 width, height, depth;
};

struct copy_3d_narrow {
    u32 src_x, src_y, src_z, src_lod;
    u32 src_type;
    u64 src_host;
    u32 src_device;
    u64 src_array, src_context;
    u32 src_pitch, src_height;
    u32 dst_x, dst_y, dst_z, dst_lod;
    u32 dst_type;
    u64 dst_host;
    u32 dst_device;
    u64 dst_array, dst_context;
    u32 dst_pitch, dst_height;
    u32 width, height, depth;
};

/* Bytes of one channel of a CUarray_format; 0 where a texel has no whole number of bytes. */
static __always_inline u32 channel_bytes(u32 format) {
    switch (format) {
    case 0x01: /* UNSIGNED_INT8 */
    case 0x08: /* SIGNED_INT8 */
    case 0xc0: /* UNORM_INT8X1, X2, X4 */
    case 0xc1:
    case 0xc2:
    case 0xc6: /* SNORM_INT8X1, X2, X4 */
    case 0xc7:
    case 0xc8:
        return 1;
    case 0x02: /* UNSIGNED_INT16 */
    case 0x09: /* SIGNED_INT16 */
    case 0x10: /* HALF */
    case 0xc3: /* UNORM_INT16X1, X2, X4 */
    case 0xc4:
    case 0xc5:
    case 0xc9: /* SNORM_INT16X1, X2, X4 */
    case 0xca:
    case 0xcb:
        return 2;
    case 0x03: /* UNSIGNED_INT32 */
    case 0x0a: /* SIGNED_INT32 */
    case 0x20: /* FLOAT */
        return 4;
    }
    return 0;
}

#endif
