"""How bytes get from a store to the disk: by parallel ranges, resumed, bounded in time and memory, and verified."""

from __future__ import annotations

from appliance.storage.download.downloader import Downloader
from appliance.storage.download.journal import NAME, Journal, mark
from appliance.storage.download.retry import with_progress, with_retries

__all__ = ["NAME", "Downloader", "Journal", "mark", "with_progress", "with_retries"]
