"""The README of a model in another library's format: what it is and how it is loaded."""

from chexpert_hf.configuration_chexpert import CheXpertConfig

_WARNING = (
    "**Research software, not a medical device.** No score may be used to diagnose, to treat or to triage anybody."
)

_TIMM = """---
library_name: timm
pipeline_tag: image-classification
tags: [chest-x-ray, radiology, densenet, multi-label]
---

# {name}

A mirror of a chexpert-hf model for transformers without remote code, through timm (`pip install timm`).

{warning}

```python
from transformers import pipeline

classify = pipeline("image-classification", "{name}")
classify("radiograph.png", top_k={count})  # 8-bit images; top_k is 5 unless you say otherwise
```

Maps, DICOM and 16-bit images are for the package chexpert-hf. The model folder that this was made from has the card
with data, figures, limits, licence and citation, which hold here as well.

{points}"""

_TORCHXRAYVISION = """# {name}

A chexpert-hf model in a file for torchxrayvision.

{warning}

```python
import torch, torchxrayvision as xrv

checkpoint = torch.load("{file}", weights_only=True)
model = xrv.models.DenseNet(
    num_classes=len(checkpoint["targets"]), op_threshs=checkpoint["state_dict"]["op_threshs"]
).eval()
model.load_state_dict(checkpoint["state_dict"])
model.targets = model.pathologies = checkpoint["targets"]
model.input_resolution = checkpoint["input_resolution"]
```

Its outputs are bent so that .5 is the operating point. With `model.op_threshs = None` and `model.apply_sigmoid = True`
they are the probabilities that chexpert-hf gives. The model folder that this was made from has the card with data,
figures, limits, licence and citation, which hold here as well.

{points}"""


def timm_card(name: str, config: CheXpertConfig) -> str:
    """For timm and transformers."""
    return _TIMM.format(name=name, warning=_WARNING, count=len(config.observations), points=_points(config))


def torchxrayvision_card(name: str, config: CheXpertConfig, file: str) -> str:
    """For torchxrayvision."""
    return _TORCHXRAYVISION.format(name=name, warning=_WARNING, file=file, points=_points(config))


def _points(config: CheXpertConfig) -> str:
    rows = [f"| {name} | {point:.4f} |" for name, point in (config.operating_points or {}).items()]
    return "\n".join(["| observation | operating point |", "| --- | ---: |", *rows, ""])
