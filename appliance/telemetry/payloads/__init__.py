"""
The payload log: what was asked and answered, for those who need it, as CloudEvents; off unless the config asks for it.
"""

from appliance.telemetry.payloads.captured_body import BodyCapture, CapturedBody
from appliance.telemetry.payloads.payload_log import PayloadLog

__all__ = ["BodyCapture", "CapturedBody", "PayloadLog"]
