"""What NVML tells in two ways, or only at times: ECC by location, the fabric, identity, peers."""

from __future__ import annotations

import pynvml as nv
import pytest

from tests.fakegpu.nvml_boards import BOARDS, UNSUPPORTED
from tests.unit.test_boards import Board, board

__all__ = ["board"]

FIELDS = (11, 12, 22, 23)  # ECC errors of the device memory


def test_ecc_by_location_without_fields(board: Board) -> None:
    for number in FIELDS:
        board.node.field(0, number, error=nv.NVML_ERROR_NOT_SUPPORTED)
    one, other = board.look()
    fact = "ecc_location_errors"
    assert len(one.figures[fact]) == 8  # device memory and sram
    assert one.figures[fact] == other.figures[fact]
    told = one.get(fact, "uncorrected", "aggregate", "device_memory")
    assert told == BOARDS["hopper"].figures["ecc_uncorrected_aggregate_memory"]


@pytest.mark.parametrize("board", ["hopper", "blackwell"], indirect=True)
def test_the_fabric_while_it_registers(board: Board) -> None:
    board.node.figures(0, fabric_state=2, fabric_status=31)
    board.node.figures(1, fabric_status=31)
    waiting, failed = board.look()
    assert waiting.get("fabric_state") == 2
    assert (waiting.get("fabric_status"), waiting.get("fabric_clique")) == (None, None)
    assert (failed.get("fabric_status"), failed.get("fabric_clique")) == (31, None)
    board.node.figures(0, fabric_state=3, fabric_status=0, fabric_clique=7)
    known = board.look()[0]
    assert (known.get("fabric_status"), known.get("fabric_clique")) == (0, 7)


def test_a_board_without_a_fabric(board: Board) -> None:
    board.node.figures(0, fabric_state=UNSUPPORTED)
    device = board.look()[0]
    assert not {name for name in device.figures if name.startswith("fabric")}
    assert device.missing.keys() <= {"unsupported", "not_yet"}


@pytest.mark.parametrize("board", ["blackwell"], indirect=True)
def test_what_needs_a_newer_driver(board: Board) -> None:
    board.node.figures(0, recovery_action=4)
    device = board.look()[0]
    assert device.get("recovery_action") == 4
    assert device.get("edpp_multiplier_ratio") == 0.97


def test_pci_ids(board: Board) -> None:
    board.node.figures(0, pci_device_id=0x233010DE, pci_subsystem_id=0)
    info = board.look()[0].info
    assert (info.pci_device_id, info.pci_subsystem_id) == ("0x233010DE", "")
    assert info.inforom_ecc_version == "6.16"


@pytest.mark.parametrize("board", ["blackwell"], indirect=True)
def test_the_troubles_of_the_fabric(board: Board) -> None:
    told = board.look()[0].figures["fabric_trouble"]
    assert {name: told[name,] for (name,) in told} == {
        "degraded_bandwidth": 0,
        "route_recovery": 1,
        "route_unhealthy": 0,
        "access_timeout_recovery": 0,
    }
    board.node.figures(0, fabric_health=0b01_00 | 1 << 8)  # the rest isn't looked for
    device = board.look()[0]
    assert device.figures["fabric_trouble"] == {("route_recovery",): 1}
    assert device.get("fabric_configuration_error") == 0


@pytest.mark.parametrize("board", ["blackwell"], indirect=True)
def test_where_in_a_rack(board: Board) -> None:
    board.node.figures(1, platform_tray=255, platform_guid=0, pci_class=UNSUPPORTED)
    one, other = (device.info for device in board.look())
    assert (one.slot, one.tray, one.host_id, one.module_id) == ("23", "13", "2", "3")
    assert (one.fabric_guid, one.chassis_serial) == ("0x3B5F000100020003", "SIM1000000000017")
    assert (one.pci_class, other.pci_class) == ("0302", "")
    assert (other.slot, other.tray, other.fabric_guid) == ("23", "", "")


def test_reasons_that_there_can_be(board: Board) -> None:
    device = board.look()[0]
    assert device.get("clock_reason_possible", "sync_boost") == 0
    assert device.get("clock_reason_possible", "gpu_idle") == 1


def test_nvlink_between_the_boards(board: Board) -> None:
    one, other = (device.info for device in board.look())
    assert (one.p2p, other.p2p) == (((other.uuid, 0),), ((one.uuid, 0),))


@pytest.mark.parametrize("board", ["consumer"], indirect=True)
def test_no_nvlink_between_the_boards(board: Board) -> None:
    one, other = (device.info for device in board.look())
    assert (one.p2p, other.p2p) == (((other.uuid, 5),), ((one.uuid, 5),))


def test_peers_that_are_not_told(board: Board) -> None:
    board.node.fault("nvmlDeviceGetP2PStatus", nv.NVML_ERROR_UNKNOWN, device=1)
    assert [device.info.p2p for device in board.look()] == [(), ()]


@pytest.mark.parametrize("board", ["hopper_mig"], indirect=True)
def test_pcie_of_each_instance(board: Board) -> None:
    board.node.gpm(0, 20, 3.0, instance=7)
    board.look()
    told = {mig.info.gpu_instance: mig.figures for mig in board.look()[0].mig}
    assert told[7]["pcie_throughput_bytes_per_second"]["transmit",] == 3 << 20
