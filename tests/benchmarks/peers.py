"""Speed, memory and exactness next to other packages: `python -m tests.benchmarks.peers MODEL RADIOGRAPHS`.

The runtimes of `chexpert-hf bench` take turns with the pipeline of transformers on the same model folder and with
torchxrayvision by its README; with `--saliency`, with the maps of pytorch-grad-cam instead. Peers that are not
installed are skipped.
"""

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from chexpert_hf.bench.contenders import machine, radiographs, runtime_specs, untrained_model
from chexpert_hf.bench.measure import REFERENCE, Contender, Spec, as_table, run_benchmark
from chexpert_hf.scoring.classifier import CheXpertClassifier

XRV_SIZE = 224


class PipelineContender(Contender):
    """The pipeline of transformers, as the model's card shows it."""

    def __init__(self, model, batch_size):
        from transformers import pipeline

        self.batch_size = batch_size
        # Of the loaded model: by its folder's name it would run the code that lies in the folder.
        ours = CheXpertClassifier.from_pretrained(model, runtime="torch", precision="fp32")
        self.pipeline = pipeline("image-classification", model=ours.model, image_processor=ours.processor)
        self.labels = list(ours.model.config.id2label.values())
        self.pixel_values = torch.rand(batch_size, ours.model.config.num_channels, *ours.processor.output_size)

    def score(self, paths):
        answers = self.pipeline(list(paths), batch_size=self.batch_size, top_k=len(self.labels))
        scores = [{item["label"]: item["score"] for item in answer} for answer in answers]
        return np.array([[score[label] for label in self.labels] for score in scores])

    @torch.inference_mode()
    def forward(self, count):
        self.pipeline.model(self.pixel_values[:count].to(self.pipeline.model.device)).logits.cpu()


class TorchXRayVisionContender(Contender):
    """torchxrayvision's DenseNet121 by the steps of its README: read, normalise, centre crop, resize to 224, score.

    With random weights: they make no difference to the speed, and nothing is downloaded.
    """

    def __init__(self, batch_size):
        import torchvision
        import torchxrayvision as xrv

        self.batch_size, self.normalize = batch_size, xrv.datasets.normalize
        steps = [xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(XRV_SIZE, engine="cv2")]
        self.transform = torchvision.transforms.Compose(steps)
        self.model = xrv.models.DenseNet(num_classes=18, in_channels=1).eval()
        self.pixel_values = torch.rand(batch_size, 1, XRV_SIZE, XRV_SIZE)

    def read(self, path):
        import skimage.io

        image = self.normalize(skimage.io.imread(path), 255)
        image = image.mean(2)[None] if image.ndim == 3 else image[None]
        return torch.from_numpy(self.transform(image))

    @torch.no_grad()
    def score(self, paths):
        for start in range(0, len(paths), self.batch_size):
            self.model(torch.stack([self.read(path) for path in paths[start : start + self.batch_size]]))

    @torch.no_grad()
    def forward(self, count):
        self.model(self.pixel_values[:count])


class GradCAMContender(Contender):
    """pytorch-grad-cam's maps of all observations, one target after the other, on the same model."""

    def __init__(self, model, batch_size):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        self.batch_size = batch_size
        self.classifier = CheXpertClassifier.from_pretrained(model, runtime="torch", precision="fp32")
        network = self.classifier.model

        class Logits(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self, pixel_values):
                return self.network(pixel_values).logits

        self.cam = GradCAM(Logits(), target_layers=[network.features.norm5])
        self.targets = [ClassifierOutputTarget(label) for label in range(network.num_labels)]
        size = self.classifier.processor.output_size
        self.pixel_values = torch.rand(batch_size, network.config.num_channels, *size)

    def score(self, paths):
        for path in paths:
            prepared = self.classifier.prepare(self.classifier.read(path))
            self.maps(self.classifier.processor.pixel_values_of(prepared.gray[0][None]))

    def forward(self, count):
        self.maps(self.pixel_values[:count])

    def maps(self, pixel_values):
        for target in self.targets:
            self.cam(pixel_values.to(self.classifier.model.device), targets=[target] * len(pixel_values))


def peer_specs(model, batch_size, saliency):
    """The peers that are installed: those that give scores, or the one that gives maps."""
    peers = [
        ("torchxrayvision", partial(TorchXRayVisionContender, batch_size), False, ("torchxrayvision", "skimage")),
        ("transformers pipeline", partial(PipelineContender, str(model), batch_size), False, ()),
        ("pytorch-grad-cam", partial(GradCAMContender, str(model), batch_size), True, ("pytorch_grad_cam",)),
    ]
    return [
        Spec(name, make, batch_size, has_maps)
        for name, make, has_maps, needed in peers
        if has_maps == saliency and all(find_spec(package) for package in needed)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="Model folder; an untrained DenseNet121 if none.")
    parser.add_argument("images", type=Path, nargs="?", help="Folder of radiographs; synthetic ones if none.")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224, help="Of the untrained model, in pixels.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--saliency", action="store_true", help="Compare maps, with pytorch-grad-cam.")
    parser.add_argument("--only", default="", help="Contenders whose name has one of these in it: 'openvino,xray'.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="chexpert-hf-bench-") as scratch:
        folder = options.model or untrained_model(Path(scratch) / "model", options.image_size)
        paths = radiographs(options.images, options.limit, Path(scratch) / "phantoms")
        chosen = (folder, options.batch_size, options.saliency)
        specs = [*runtime_specs(*chosen), *peer_specs(*chosen)]
        specs = [spec for spec in specs if any(part.strip() in spec.name for part in options.only.split(","))]
        results = run_benchmark(specs, paths, rounds=options.rounds, say=lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps({"machine": machine(), "images": len(paths), "results": [asdict(item) for item in results]}))
        return
    print(f"{machine()}; {len(paths)} radiographs, batches of {options.batch_size}, {options.rounds} rounds.")
    print(as_table(results, REFERENCE if options.saliency else "torchxrayvision"))


if __name__ == "__main__":
    main()
