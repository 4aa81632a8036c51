/* libnvidia-ml.so.1 of the simulated GPU node: the library, the system and the devices; what is
 * read from a device is in the nvml_*.c.
 *
 * Names, signatures and layouts are NVML's as nvidia-ml-py declares them; what driver 535 doesn't
 * export isn't here either. Manners follow NVML's API reference: (0, NULL) asks for a size, a
 * versioned structure with another version is refused, only process utilization knows NOT_FOUND. */
#include "nvml_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

static struct handle handles[FG_MAX_DEVICES];
static u32 references;
static u64 generation;

/* --- every call's way in -------------------------------------------------------------------- */

int enter(const char *function, i32 device) {
    if (!references)
        return UNINITIALIZED;
    __atomic_fetch_add(&node_settings()->calls, 1, __ATOMIC_RELAXED);
    int fault = node_fault(function, device);
    if (fault)
        return fault;
    return driver_went_away() ? UNKNOWN : OK;
}

int driver_went_away(void) {
    return node_settings()->unloaded || node_settings()->generation != generation;
}

int enter_device(const char *function, nvmlDevice_t h, const void *out, int how) {
    if (!references)
        return UNINITIALIZED;
    int mig = is_mig_handle(h);
    if (!out || (!mig && (h < handles || h >= handles + node->device_count)))
        return INVALID_ARGUMENT;
    RETURN_IF(enter(function, (i32)h->index));
    if (!(how & LOST_OK) && __atomic_load_n(&device_of(h)->lost, __ATOMIC_RELAXED))
        return GPU_IS_LOST;
    if (mig && !instance_of(h)) /* destroyed since; what the driver says isn't documented */
        return INVALID_ARGUMENT;
    if (mig && !(how & MIG_OK))
        return NOT_SUPPORTED;
    return (how & NOT_IN_MIG) && device_of(h)->is_mig ? NOT_SUPPORTED : OK;
}

nvmlDevice_t handle_of(u32 device) { return &handles[device]; }

int put_text(char *out, u32 size, const char *text) {
    if (!out)
        return INVALID_ARGUMENT;
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}

/* --- library and system ---------------------------------------------------------------------- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (node_open() || node_settings()->unloaded)
        return DRIVER_NOT_LOADED;
    int fault = node_fault("nvmlInit", -1);
    if (fault)
        return fault;
    references++;
    generation = node_settings()->generation;
    __atomic_fetch_add(&node_settings()->inits, 1, __ATOMIC_RELAXED);
    for (u32 i = 0; i < FG_MAX_DEVICES; i++)
        handles[i].index = i;
    for (u32 i = 0; i < node->device_count; i++)
        node_sample(i);
    return OK;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void) {
    if (!references)
        return UNINITIALIZED;
    references--;
    __atomic_fetch_add(&node_settings()->shutdowns, 1, __ATOMIC_RELAXED);
    return OK;
}

EXPORT const char *nvmlErrorString(int error) {
    static const char *const texts[] = {
        [0] = "Success",
        [1] = "Uninitialized",
        [2] = "Invalid Argument",
        [3] = "Not Supported",
        [4] = "Insufficient Permissions",
        [5] = "Already Initialized",
        [6] = "Not Found",
        [7] = "Insufficient Size",
        [8] = "Insufficient External Power",
        [9] = "Driver Not Loaded",
        [10] = "Timeout",
        [11] = "Interrupt Request Issue",
        [12] = "NVML Shared Library Not Found",
        [13] = "Function Not Found",
        [14] = "Corrupted infoROM",
        [15] = "GPU is lost",
        [16] = "GPU requires reset",
        [17] = "GPU access blocked by the operating system",
        [18] = "Driver/library version mismatch",
        [19] = "In use by another client",
        [20] = "Insufficient Memory",
        [21] = "No data",
        [23] = "Insufficient Resources",
        [25] = "Argument version mismatch",
    };
    int known = error >= 0 && error < (int)(sizeof texts / sizeof *texts) && texts[error];
    return known ? texts[error] : "Unknown Error";
}

EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    ENTER();
    return put_text(out, size, node->driver_branch[0] ? node->driver_branch : "535.0");
}

EXPORT int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    char text[48]; /* the real library, too, answers before nvmlInit */
    if (node_open())
        return UNINITIALIZED;
    snprintf(text, sizeof text, "%u.%.32s", node->driver_version / 1000, node->driver_branch);
    return put_text(out, size, text);
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    ENTER();
    if (!out)
        return INVALID_ARGUMENT;
    *out = (int)node->driver_version;
    return OK;
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *out) {
    return nvmlSystemGetCudaDriverVersion_v2(out);
}

EXPORT int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    char path[64], text[1024] = "";
    ENTER();
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return NOT_FOUND;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    if (!out || !size)
        return INVALID_ARGUMENT;
    snprintf(out, size, "%s", text);
    return OK;
}

/* --- devices --------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetCount_v2(unsigned *out) {
    ENTER();
    if (!out)
        return INVALID_ARGUMENT;
    *out = node->device_count;
    return OK;
}

EXPORT int nvmlDeviceGetCount(unsigned *out) { return nvmlDeviceGetCount_v2(out); }

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
    if (references && (index >= node->device_count || !out))
        return INVALID_ARGUMENT;
    int fault = enter(__func__, (i32)index);
    if (fault)
        return fault;
    if (node->devices[index].lost)
        return GPU_IS_LOST;
    *out = &handles[index];
    return OK;
}

EXPORT int nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *out) {
    return nvmlDeviceGetHandleByIndex_v2(index, out);
}

void uuid_text(const char *prefix, const u8 *b, char text[48]) {
    char *p = text + sprintf(text, "%s", prefix);
    for (int i = 0; i < 16; i++)
        p += sprintf(p, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", b[i]);
}

static void bus_id(const struct fg_device *d, char text[32]) {
    snprintf(text, 32, "%08X:%02X:%02X.0", d->pci_domain, d->pci_bus & 255, d->pci_device & 255);
}

static int find(const char *wanted, nvmlDevice_t *out, int by_uuid) {
    char text[48];
    for (u32 i = 0; wanted && i < node->device_count; i++) {
        if (by_uuid)
            uuid_text("GPU-", node->devices[i].uuid, text);
        else
            bus_id(&node->devices[i], text);
        /* a PCI domain may be written with 4 digits or with 8 */
        if (strcasecmp(text, wanted) && (by_uuid || strcasecmp(text + 4, wanted)))
            continue;
        return nvmlDeviceGetHandleByIndex_v2(i, out);
    }
    return wanted ? NOT_FOUND : INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out) {
    ENTER();
    if (uuid && out && strncasecmp(uuid, "MIG-", 4) == 0)
        return find_mig(uuid, out);
    return find(uuid, out, 1);
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *out) {
    ENTER();
    return find(id, out, 0);
}

EXPORT int nvmlDeviceGetHandleByPciBusId(const char *id, nvmlDevice_t *out) {
    return nvmlDeviceGetHandleByPciBusId_v2(id, out);
}

EXPORT int nvmlDeviceGetUUID(nvmlDevice_t h, char *out, unsigned size) {
    char text[48];
    ENTER_DEVICE_AS(h, out, LOST_OK | MIG_OK);
    uuid_text(h->is_mig ? "MIG-" : "GPU-", h->is_mig ? h->uuid : device_of(h)->uuid, text);
    return put_text(out, size, text);
}

EXPORT int nvmlDeviceGetName(nvmlDevice_t h, char *out, unsigned size) {
    char text[144];
    ENTER_DEVICE_AS(h, out, LOST_OK | MIG_OK);
    const struct fgn_instance *instance = h->is_mig ? instance_of(h) : NULL;
    snprintf(text, sizeof text, "%.95s%s%.31s", device_of(h)->name, instance ? " MIG " : "",
             instance ? instance->profile : "");
    return put_text(out, size, text);
}

struct pci_info {
    char bus_id_legacy[16];
    u32 domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

_Static_assert(sizeof(struct pci_info) == 68, "as nvmlPciInfo_t");

static void pci_info(nvmlDevice_t h, struct pci_info *out) {
    const struct fg_device *d = device_of(h);
    memset(out, 0, sizeof *out);
    out->domain = d->pci_domain;
    out->bus = d->pci_bus;
    out->device = d->pci_device;
    out->device_id = (u32)figure_or(h->index, F_pci_device_id, 0);
    out->subsystem_id = (u32)figure_or(h->index, F_pci_subsystem_id, 0);
    bus_id(d, out->bus_id);
    memcpy(out->bus_id_legacy, out->bus_id + 4, 13);
}

EXPORT int nvmlDeviceGetPciInfo_v3(nvmlDevice_t h, struct pci_info *out) {
    ENTER_DEVICE_AS(h, out, LOST_OK);
    pci_info(h, out);
    return OK;
}

/* Both older versions begin like the newest; the first has no subsystem. */
static int older_pci_info(nvmlDevice_t h, void *out, size_t size) {
    struct pci_info info;
    pci_info(h, &info);
    memset(info.bus_id, 0, sizeof info.bus_id);
    memcpy(out, &info, size);
    return OK;
}

EXPORT int nvmlDeviceGetPciInfo_v2(nvmlDevice_t h, void *out) {
    ENTER_DEVICE_AS(h, out, LOST_OK);
    return older_pci_info(h, out, 52);
}

EXPORT int nvmlDeviceGetPciInfo(nvmlDevice_t h, void *out) {
    ENTER_DEVICE_AS(h, out, LOST_OK);
    return older_pci_info(h, out, offsetof(struct pci_info, subsystem_id));
}

EXPORT int nvmlDeviceGetCudaComputeCapability(nvmlDevice_t h, int *major, int *minor) {
    ENTER_DEVICE_AS(h, major && minor ? h : NULL, LOST_OK | MIG_OK);
    *major = (int)device_of(h)->compute_major;
    *minor = (int)device_of(h)->compute_minor;
    return OK;
}
