"""KServe's package of this name, which has the names of its only module too."""

from appliance.kserve.utils.utils import *  # noqa: F403 - exactly its __all__
