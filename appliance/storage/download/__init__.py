"""
How bytes get from a store to the disk: by parallel ranges, resumed, bounded in time and memory, and verified.
"""

from __future__ import annotations

from appliance.storage.download.downloader import Transfer
from appliance.storage.download.journal import NAME, Journal, mark
from appliance.storage.download.retry import attended, insist

__all__ = ["NAME", "Journal", "Transfer", "attended", "insist", "mark"]
