"""OpenVINO, NNCF and ONNX Runtime, imported without their telemetry.

OpenVINO and NNCF report to Google Analytics and ONNX Runtime 1.32 to Microsoft, from the import on and without asking.
Where radiographs are read, nothing may call home unless somebody decided so.
"""

import os
import sys
from types import ModuleType

from chexpert_hf.models.graph_files import GraphError


def import_openvino() -> ModuleType:
    """OpenVINO; its telemetry stays on in a process that has imported OpenVINO before.

    Raises:
        GraphError: If it is not installed.
    """
    _silence_openvino()
    try:
        import openvino
    except ImportError as error:
        raise GraphError('OpenVINO is not installed: pip install "chexpert-hf[openvino]"') from error
    module: ModuleType = openvino
    return module


def import_nncf() -> ModuleType:
    """NNCF, which quantises OpenVINO's graphs; silent, too, except for errors.

    Raises:
        GraphError: If it is not installed.
    """
    _silence_openvino()
    try:
        import nncf
    except ImportError as error:
        raise GraphError('NNCF is not installed: pip install "chexpert-hf[openvino]"') from error
    module: ModuleType = nncf
    return module


def import_onnxruntime() -> ModuleType:
    """ONNX Runtime; `ORT_DISABLE_TELEMETRY=0` in the environment leaves its telemetry on.

    Raises:
        GraphError: If it is not installed.
    """
    # Its function disable_telemetry_events comes too late: by then there is a device id in the user's cache folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise GraphError('ONNX Runtime is not installed: pip install "chexpert-hf[onnx]"') from error
    module: ModuleType = onnxruntime
    return module


def _silence_openvino() -> None:
    """Makes the import of `openvino_telemetry` fail, upon which OpenVINO and NNCF do without."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # this is how an import is blocked
