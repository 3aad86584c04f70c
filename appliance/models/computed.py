"""
What the sections of models that are computed here share: by vLLM, or by a class of the user's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Discriminator, JsonValue, Tag, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from appliance.contract import Model, Operation, Peers
from appliance.layout import LayoutSection
from appliance.models.section import ModelSection
from appliance.python_model.section import PythonSection
from appliance.storage.section import StorageSection
from appliance.vllm_engine.section import EngineSection

_PYTHON = "python"


def _kind(engine: Any) -> str:  # Any: what a file holds before it is checked
    is_python = _PYTHON in engine if isinstance(engine, dict) else isinstance(engine, PythonSection)
    return "PythonSection" if is_python else "EngineSection"


AnyEngine = Annotated[
    Annotated[EngineSection, Tag("EngineSection")] | Annotated[PythonSection, Tag("PythonSection")],
    Discriminator(_kind),
]
"""
The engine: a class of the user's where the key `python` names one, else vLLM.
"""

_WHERE_FROM = "Where the model's bytes come from"

_STORAGE_FOR_VLLM: JsonDict = {
    "if": {"required": ["engine"], "properties": {"engine": {"type": "object", "required": [_PYTHON]}}},
    "else": {"required": ["storage"], "properties": {"storage": {"description": f"{_WHERE_FROM}."}}},
}


class ComputedSection(ModelSection):
    """
    A model that is computed here.
    """

    model_config = ConfigDict(json_schema_extra=_STORAGE_FOR_VLLM)

    offered: ClassVar[frozenset[Operation]]
    """What a class of the user's can be asked."""

    storage: StorageSection | SkipJsonSchema[None] = None
    """Where the model's bytes come from; it may be left out with `engine.python`, which finds them as `model_dir`."""

    layout: LayoutSection = LayoutSection()
    """How the model sits on GPUs; unset is one device."""

    engine: AnyEngine = EngineSection()
    """What computes: vLLM, or with the key `python` a class of yours."""

    @model_validator(mode="after")
    def _has_storage(self) -> Self:
        if self.storage is None and not isinstance(self.engine, PythonSection):
            raise ValueError(f"has no storage; must have it: {_WHERE_FROM.lower()}")
        return self

    @property
    def computer(self) -> str:
        return _PYTHON if isinstance(self.engine, PythonSection) else super().computer

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        return {"layout": self.layout.model_dump(mode="json", exclude_none=True)}

    @property
    def storages(self) -> Mapping[str, StorageSection]:
        return {} if self.storage is None else {"model": self.storage}

    @property
    def allow_pickle(self) -> bool:
        """
        The storage's word on weights that may run code.
        """
        return self.storage is not None and self.storage.allow_pickle

    def build(self, _peers: Peers) -> Model:
        if isinstance(self.engine, PythonSection):
            # The classes of requests and answers are no business of a program that only checks a file.
            from appliance.python_model.imported import Imported

            return Imported(self.name, self.engine, self.offered)
        return self.in_vllm(self.engine)

    @abstractmethod
    def in_vllm(self, engine: EngineSection) -> Model:
        """
        The model in an engine of vLLM's.
        """
