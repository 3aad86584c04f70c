"""
All that is told of a request, in one place for every listener.
"""

from __future__ import annotations

from appliance.record import Record
from appliance.telemetry import requests
from appliance.telemetry.access import AccessLog, AccessSection


class Telemetry:
    """
    Counts, logs and traces the requests of this process.
    """

    def __init__(self, access: AccessSection) -> None:
        self.access = AccessLog(access)

    def tell(self, record: Record) -> None:
        """
        Take in a request that has ended.
        """
        requests.count(record)
        self.access.tell(record)
