"""KServe's repository of models."""

from __future__ import annotations

from pathlib import Path

from appliance.python_api.base_model import BasePythonModel
from appliance.python_api.user_code import call_method

MODEL_MOUNT_DIRS = "/mnt/models"
"""Where KServe mounts a model."""


class ModelRepository:
    """Models by the names they are served under; a subclass may load them from `models_dir`.

    `ModelServer(registered_models=...)` serves those that are in it when the server starts.
    """

    def __init__(self, models_dir: str = MODEL_MOUNT_DIRS) -> None:
        self.models: dict[str, BasePythonModel] = {}
        self.models_dir = models_dir

    def set_models_dir(self, models_dir: str) -> None:
        """Set the directory of `load_models`."""
        self.models_dir = models_dir

    def load_models(self) -> None:
        """Call `load_model` for each directory of `models_dir`."""
        for directory in sorted(Path(self.models_dir).iterdir()):
            if directory.is_dir():
                self.load_model(directory.name)

    def load_model(self, name: str) -> bool:
        """Load the model in the directory of this name, and add it with `update`; for subclasses."""
        raise NotImplementedError

    def load(self, name: str) -> bool:
        """Load a model, by default with `load_model`."""
        return self.load_model(name)

    def update(self, model: BasePythonModel, name: str | None = None) -> None:
        """Add a model; other names than its own become aliases."""
        self.models[name or model.name] = model

    def get_model(self, name: str) -> BasePythonModel | None:
        """Return the model of this name, or None."""
        return self.models.get(name)

    def get_models(self) -> dict[str, BasePythonModel]:
        """Return all models by name."""
        return self.models

    async def is_model_ready(self, name: str) -> bool:
        """Return whether the model of this name can answer now; False if there is none."""
        model = self.models.get(name)
        return model is not None and bool(await call_method(model.healthy))

    def unload(self, name: str) -> None:
        """Remove a model, whose server stops it.

        Raises:
            KeyError: there is none of this name.
        """
        del self.models[name]
