"""What lmms-eval reads of the entry point "jaxvlm" in its group "lmms_eval.models".

It is loaded whenever lmms_eval is imported, so the classes, which need JAX, are only named here.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of the model "jaxvlm". Source: lmms_eval/models/registry_v2.py of lmms-eval 0.7.3."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "jaxvlm.integrations.lmms_eval_models"
    return ModelManifest("jaxvlm", simple_class_path=f"{module}.SimpleModel", chat_class_path=f"{module}.ChatModel")
