"""Optional libraries, imported without their telemetry.

OpenVINO and NNCF report to Google Analytics and ONNX Runtime 1.32 to Microsoft, from the import on and without asking.
Where radiographs are read, nothing may call home unless somebody decided so.
"""

import importlib
import os
import sys
from typing import Any

from chexpert_hf.models.graph_files import GraphError

_LIBRARIES = {
    "openvino": ("OpenVINO", "openvino"),
    "nncf": ("NNCF", "openvino"),
    "onnxruntime": ("ONNX Runtime", "onnx"),
    "onnx": ("onnx", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
}
"""By module: the library's name, and the extra of this package that installs it."""


def import_library(module: str) -> Any:
    """An optional library; `ORT_DISABLE_TELEMETRY=0` in the environment leaves ONNX Runtime's telemetry on.

    OpenVINO's stays on in a process that imported OpenVINO before.

    Raises:
        GraphError: If it is not installed.
    """
    # Makes the import of this module fail, upon which OpenVINO and NNCF do without.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # this is how an import is blocked
    # The function disable_telemetry_events comes too late: by then there is a device id in the user's cache folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    name, extra = _LIBRARIES[module]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GraphError(f'{name} is not installed: pip install "chexpert-hf[{extra}]"') from error
