"""BOARDS: the dashboards as tables, a file each, one row per panel."""

from deploy.monitoring.boards.fleet import FLEET
from deploy.monitoring.boards.job import JOB
from deploy.monitoring.boards.node import NODE
from deploy.monitoring.boards.process import PROCESS

BOARDS = (FLEET, NODE, JOB, PROCESS)
