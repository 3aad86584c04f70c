"""The command line over everything: ``--set server.port=9000``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.config.masking import MASK, is_private_name, mask
from appliance.config.model_entries import named_models
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath, Diagnostic, Source, SourceLocation, is_unicode, printable
from appliance.config.yaml_parser import parse
from appliance.core.errors import ConfigError
from appliance.core.suggestions import did_you_mean, known_names

_FORM = "must be a path, = and a value in YAML, such as server.port=9000"

_LIST = "goes into a list, whose entries have no paths; must set the list as a whole, such as a=[b, c]"


def lay(draft: RawConfig, overrides: Sequence[str]) -> tuple[RawConfig, list[Diagnostic]]:
    """The draft with each of the overrides laid over it in turn, and a fault for each that cannot be."""
    faults: list[Diagnostic] = []
    for override in overrides:
        source = Source(f"--set {_shown(override)}")
        try:
            draft, wrong = _laid(draft, override, source)
        except _MalformedError as malformed:
            faults.append(Diagnostic((), str(malformed), SourceLocation(source)))
        except ConfigError as error:
            # The value is a document of its own, and so is its one problem.
            faults += [Diagnostic((), problem.message, SourceLocation(source)) for problem in error.problems]
        else:
            faults += wrong
    return draft, faults


def _shown(override: str) -> str:
    """An override without the value of a secret key, and without one that is more than a word of text."""
    name, equals, text = override.partition("=")
    parts = re.split(r"[^\w-]+", name)
    first = next((part for part in parts if is_private_name(part)), None)
    if first is not None:
        # What follows it is a field at best.
        return f"{printable(name[: name.index(first) + len(first)])}{f'={MASK}' if equals else MASK}"
    if text.lstrip()[:1] in {"*", "!", "&", "|", ">", "{", "["}:
        return f"{printable(name)}={MASK}"
    return printable(mask(override, 0)[0])


class _MalformedError(Exception):
    """An override names nothing; its text is the message."""


def _laid(draft: RawConfig, override: str, source: Source) -> tuple[RawConfig, list[Diagnostic]]:
    name, equals, text = override.partition("=")
    if not is_unicode(override):
        raise _MalformedError("is not UTF-8 text; must be UTF-8")
    if not equals or not all(name.split(".")):
        raise _MalformedError(f"is not an assignment; {_FORM}")
    if re.search(r"\[\d*\]", name):
        raise _MalformedError(_LIST)
    path = _path(draft, name)
    if draft.goes_into_a_list(path):
        raise _MalformedError(_LIST)
    value, faults = parse(text, source)
    wrong = [Diagnostic((*path, *fault.path), fault.message, fault.place) for fault in faults]
    return draft.with_value(path, value.data, SourceLocation(source)), wrong


def _path(draft: RawConfig, name: str) -> DataPath:
    config, _, rest = name.partition(".")
    if config != "models" or not rest:
        return tuple(name.split("."))
    # Names of models hold dots too: the longest that fits is meant.
    models = {model: path for path, model, _ in named_models(draft)}
    fits = [model for model in models if rest.startswith(f"{model}.")]
    if not fits:
        first = rest.split(".")[0]
        raise _MalformedError(f"unknown model {first}; {did_you_mean(first, models) or known_names('models', models)}")
    model = max(fits, key=len)
    return (*models[model], *rest.removeprefix(f"{model}.").split("."))
