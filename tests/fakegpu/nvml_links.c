/* The simulated NVML: PCIe, NVLink, and how devices are connected. */
#define _GNU_SOURCE
#include "nvml_api.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define PCIE_WINDOW_NS 20000000ull

ONE(nvmlDeviceGetCurrPcieLinkGeneration, u32, 0, pcie_generation)
ONE(nvmlDeviceGetCurrPcieLinkWidth, u32, 0, pcie_width)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, u32, 0, pcie_generation_max)
ONE(nvmlDeviceGetMaxPcieLinkWidth, u32, 0, pcie_width_max)
ONE(nvmlDeviceGetGpuMaxPcieLinkGeneration, u32, 0, pcie_generation_gpu_max)
ONE(nvmlDeviceGetPcieSpeed, u32, 0, pcie_speed_mbps)
ONE(nvmlDeviceGetPcieLinkMaxSpeed, u32, 0, pcie_max_speed)
ONE(nvmlDeviceGetPcieReplayCounter, u32, 0, pcie_replays)

/* Measures over the 20 ms that follow: the call takes as long. */
EXPORT int nvmlDeviceGetPcieThroughput(nvmlDevice_t h, unsigned counter, unsigned *out) {
    struct timespec window = {0, PCIE_WINDOW_NS};
    u64 value;
    ENTER_DEVICE(h, out);
    if (counter > 1) /* sent, received */
        return INVALID_ARGUMENT;
    RETURN_IF(figure(h->index, F_pcie_tx_kb_s + counter, &value));
    while (nanosleep(&window, &window))
        ;
    *out = (u32)value;
    return OK;
}

/* --- NVLink ------------------------------------------------------------------------------------
 */

int link_check(u32 device, u32 link) {
    u64 links;
    RETURN_IF(figure(device, F_nvlinks, &links));
    return link < links && link < FGN_LINKS ? OK : INVALID_ARGUMENT;
}

static u64 link_value(u32 device, u32 link, enum fgn_link_figure which, int *error) {
    u64 value;
    *error = decode(fg_load(&device_settings(device)->links[link][which]), &value);
    return value;
}

int link_figure(u32 device, u32 link, enum fgn_link_figure which, u64 *out) {
    int error;
    RETURN_IF(link_check(device, link));
    if (!link_value(device, link, L_active, &error))
        return NOT_SUPPORTED; /* a link that is down tells no more */
    *out = link_value(device, link, which, &error);
    return error ? NOT_SUPPORTED : OK;
}

int link_total(u32 device, enum fgn_link_figure which, u64 *out) {
    u64 value, total = 0;
    int any = 0;
    RETURN_IF(link_check(device, 0));
    for (u32 link = 0; link < FGN_LINKS; link++)
        if (!link_figure(device, link, which, &value)) {
            total += value;
            any = 1;
        }
    *out = total;
    return any ? OK : NOT_SUPPORTED;
}

EXPORT int nvmlDeviceGetNvLinkState(nvmlDevice_t h, unsigned link, unsigned *out) {
    int error;
    ENTER_DEVICE(h, out);
    RETURN_IF(link_check(h->index, link));
    *out = (u32)link_value(h->index, link, L_active, &error);
    return OK;
}

EXPORT int nvmlDeviceGetNvLinkVersion(nvmlDevice_t h, unsigned link, unsigned *out) {
    u64 value;
    ENTER_DEVICE(h, out);
    RETURN_IF(link_figure(h->index, link, L_active, &value));
    RETURN_IF(figure(h->index, F_nvlink_version, &value));
    *out = (u32)value;
    return OK;
}

EXPORT int nvmlDeviceGetNvLinkCapability(nvmlDevice_t h, unsigned link, unsigned capability,
                                         unsigned *out) {
    static const u32 can[] = {1, 0, 1, 0, 0, 1}; /* P2P and its atomics; valid */
    u64 value;
    ENTER_DEVICE(h, out);
    RETURN_IF(link_figure(h->index, link, L_active, &value));
    if (capability >= sizeof can / sizeof *can)
        return INVALID_ARGUMENT;
    *out = can[capability];
    return OK;
}

EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t h, unsigned link, unsigned *out) {
    u64 value;
    ENTER_DEVICE(h, out);
    RETURN_IF(link_figure(h->index, link, L_remote_type, &value));
    *out = (u32)value;
    return OK;
}

struct remote_pci {
    char bus_id_legacy[16];
    u32 domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

static int remote_pci(nvmlDevice_t h, u32 link, struct remote_pci *out) {
    u64 bus;
    RETURN_IF(link_figure(h->index, link, L_remote_bus, &bus));
    memset(out, 0, sizeof *out);
    out->bus = (u32)bus;
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", (u32)bus & 255);
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "0000:%02X:00.0", (u32)bus & 255);
    return OK;
}

EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t h, unsigned link,
                                               struct remote_pci *out) {
    ENTER_DEVICE(h, out);
    return remote_pci(h, link, out);
}

/* Without the longer bus id. */
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo(nvmlDevice_t h, unsigned link, void *out) {
    struct remote_pci found;
    ENTER_DEVICE(h, out);
    RETURN_IF(remote_pci(h, link, &found));
    memcpy(out, &found, offsetof(struct remote_pci, bus_id));
    return OK;
}

EXPORT int nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t h, unsigned link, unsigned counter,
                                           u64 *out) {
    static const enum fgn_link_figure counters[] = {L_replays, L_recoveries, L_crc_flit, L_crc_data,
                                                    L_ecc_data};
    ENTER_DEVICE(h, out);
    if (counter >= sizeof counters / sizeof *counters)
        return INVALID_ARGUMENT;
    return link_figure(h->index, link, counters[counter], out);
}

/* --- topology ----------------------------------------------------------------------------------
 */

#define SAME_NODE 40
#define SAME_SYSTEM 50
#define DEVICES_PER_NODE 4

EXPORT int nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t h, nvmlDevice_t other, unsigned *out) {
    ENTER_DEVICE(h, out);
    ENTER_DEVICE(other, out);
    u32 same = h->index / DEVICES_PER_NODE == other->index / DEVICES_PER_NODE;
    *out = h == other ? 0 : (u32)figure_or(h->index, F_topology, same ? SAME_NODE : SAME_SYSTEM);
    return OK;
}

EXPORT int nvmlDeviceGetP2PStatus(nvmlDevice_t h, nvmlDevice_t other, unsigned index,
                                  unsigned *out) {
    ENTER_DEVICE(h, out);
    ENTER_DEVICE(other, out);
    if (index > 4) /* read, write, NVLink, atomics, PCI */
        return INVALID_ARGUMENT;
    int linked = !link_check(h->index, 0) && !link_check(other->index, 0);
    *out = linked || index < 2 || index == 4 ? 0 : 5; /* OK, not supported */
    return OK;
}

/* --- the fabric that switches make of the links ------------------------------------------------
 */

struct fabric_info {
    u8 cluster[16];
    i32 status;
    u32 clique;
    u32 state;
};

static int fabric_info(u32 device, struct fabric_info *out) {
    u64 state;
    RETURN_IF(figure(device, F_fabric_state, &state));
    *out = (struct fabric_info){{0},
                                (i32)figure_or(device, F_fabric_status, 0),
                                (u32)figure_or(device, F_fabric_clique, 0),
                                (u32)state};
    return OK;
}

EXPORT int nvmlDeviceGetGpuFabricInfo(nvmlDevice_t h, struct fabric_info *out) {
    ENTER_DEVICE(h, out);
    return fabric_info(h->index, out);
}

#ifdef FGN_NEWER

struct fabric_info_v2 {
    u32 version;
    u8 cluster[16];
    i32 status;
    u32 clique;
    u32 state;
    u32 health_mask;
};

EXPORT int nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t h, struct fabric_info_v2 *out) {
    struct fabric_info found;
    ENTER_DEVICE(h, out);
    if (out->version != VERSION(struct fabric_info_v2, 2))
        return VERSION_MISMATCH;
    RETURN_IF(fabric_info(h->index, &found));
    *out = (struct fabric_info_v2){out->version, {0},
                                   found.status, found.clique,
                                   found.state,  (u32)figure_or(h->index, F_fabric_health, 0)};
    return OK;
}

#endif
