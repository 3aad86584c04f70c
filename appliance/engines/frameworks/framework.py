"""What the frameworks have in common: their interface, how they find the file of a model, and how it is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from appliance.config.engine import FrameworkConfig
from appliance.core.errors import ApplianceError, LoadError, MissingExtraError, RequestError
from appliance.engines.frameworks.features import Array, Features
from appliance.storage.manifest import list_files
from appliance.storage.selection import model_file
from appliance.tensors.arrays import datatype_of
from appliance.tensors.tensor import InferenceRequest, TensorSpec, smallest_tensor

# KServe's name of the only input and output of a model whose file names none.
INPUT, OUTPUT = "input-0", "output-0"

# The module and the class of each framework, and the package that it needs.
_CLASSES: Mapping[str, tuple[str, str, str]] = {
    "lightgbm": ("lightgbm", "Lightgbm", "lightgbm"),
    "onnx": ("onnx", "Onnx", "onnxruntime"),
    "sklearn": ("sklearn", "Sklearn", "scikit-learn"),
    "xgboost": ("xgboost", "Xgboost", "xgboost"),
}


class Framework(ABC):
    """A loaded model; its methods block, and may be called in several threads at once."""

    input_errors: tuple[type[Exception], ...] = (RequestError, ValueError, TypeError, LookupError)
    """What it raises for features that it cannot compute."""

    has_probabilities: ClassVar[bool] = False
    """Whether a request can ask for probabilities."""

    knows_types: ClassVar[bool] = True
    """Whether the model's file says the types of its inputs, so that zeros are features that it can compute."""

    inputs: Sequence[TensorSpec] = ()
    """What the model's file says of its inputs; empty if it says nothing."""

    outputs: Sequence[TensorSpec] = ()
    """What it says of its outputs; empty if it says nothing."""

    columns: Sequence[str] = ()
    """The names of the columns that it was trained with."""

    @abstractmethod
    def predict(self, features: Features, *, has_probabilities: bool | None = None) -> Mapping[str, Array]:
        """Return the outputs by name; `has_probabilities` of None is as the config says.

        Raises:
            RequestError: the features are not those of the model.
        """

    def example(self) -> InferenceRequest | None:
        """Return the smallest request for the inputs that the model's file describes; None if it describes none."""
        return InferenceRequest(list(map(smallest_tensor, self.inputs))) if self.inputs else None

    def known_inputs(self, proof: Features | None) -> Sequence[TensorSpec]:  # noqa: ARG002 - the file says them
        """Return its inputs as metadata; `proof` are features that it has computed, None if there are none."""
        return self.inputs


def load(config: FrameworkConfig, path: Path) -> Framework:
    """Load the model in a file or a directory; blocks.

    Raises:
        LoadError: there is no such file, several of them, or the framework cannot load it.
        MissingExtraError: the framework is not installed.
    """
    module, name, package = _CLASSES[config.framework]
    file = path if path.is_file() else path / model_file(str(path), list_files(path, read_all=False).files, config)
    try:
        class_ = getattr(import_module(f"{__package__}.{module}"), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, config.framework, f"engine.framework: {config.framework}") from error
    try:
        framework: Framework = class_(config, file)
    except ApplianceError:
        raise
    except Exception as error:
        # Each library raises errors of its own for files that it cannot read.
        raise LoadError(
            f"{file}: {config.framework} cannot load it: {type(error).__name__}: {fault(error)}; check that it is a "
            "model of this framework, that the versions match, and that all packages are installed that it needs"
        ) from error
    return framework


def fault(error: Exception) -> str:
    """Return what an error of a library says, without the stack trace of its C++ code."""
    return str(error).partition("\nStack trace:")[0]


def describe(outputs: Mapping[str, Array]) -> Sequence[TensorSpec]:
    """Return the specs of outputs of one row."""
    return [
        TensorSpec(name, datatype_of(array) or "BYTES", (-1, *array.shape[1:]) if array.ndim else ())
        for name, array in outputs.items()
    ]


def specs_json(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:  # Any: JSON values
    """Return specs as the facts of a model have them."""
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
