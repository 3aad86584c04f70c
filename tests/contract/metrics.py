"""A scrape as the golden files have it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def described(text: str) -> str:
    """Name, type and labels of each metric, a line for each; without the times at which counters began."""
    lines = []
    for family in text_string_to_metric_families(text):
        if not family.name.endswith("_created"):
            labels = {label for sample in family.samples for label in sample.labels}
            lines.append(f"{family.name} ({family.type}) {', '.join(sorted(labels))}".rstrip())
    return "\n".join(sorted(lines))
