"""Download of files by parallel byte ranges: resumable, bounded in time and memory, and verified."""

from __future__ import annotations

from appliance.storage.download.checksums import FileDigests
from appliance.storage.download.downloader import Downloader
from appliance.storage.download.journal import JOURNAL, Journal, version_id
from appliance.storage.download.retry import on_wait, with_progress, with_retries

__all__ = ["JOURNAL", "Downloader", "FileDigests", "Journal", "on_wait", "version_id", "with_progress", "with_retries"]
