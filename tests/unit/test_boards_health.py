"""What NVML tells in two ways, or only at times: ECC by location, the fabric, PCI ids."""

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
