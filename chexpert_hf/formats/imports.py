"""A model folder from weights that others trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chexpert_hf.files import new_folder, require_empty
from chexpert_hf.formats.densenet_sources import from_stanford, from_student, from_timm, from_torchvision
from chexpert_hf.formats.foreign_model import ForeignModel
from chexpert_hf.formats.torchxrayvision_models import fetched_file, published_model, to_ours
from chexpert_hf.formats.weight_files import read_weight_file
from chexpert_hf.models.weights import WeightsError, imagenet_state_dict
from chexpert_hf.publishing.model_folder import save_imported_folder

SOURCES = "torchvision, torchxrayvision:NAME, stanford:FILE, student:FILE, timm:FILE_OR_FOLDER"

_JFHEALTHCARE = (
    "jfhealthcare's network pools by average and maximum behind an attention block, with a BatchNorm for each "
    "observation, which a DenseNet with one head cannot express; torchxrayvision.baseline_models.jfhealthcare runs it."
)


@dataclass(frozen=True)
class ImportedFolder:
    """A written model folder, and sentences for the user."""

    folder: Path
    observations: tuple[str, ...]
    operating_points: dict[str, float]
    remarks: tuple[str, ...]


def import_model(
    source: str, output: Path, *, file: Path | None = None, labels: Sequence[str] | None = None
) -> ImportedFolder:
    """Writes a complete model folder from others' weights.

    Args:
        source: One of `SOURCES`.
        output: Must be new or empty; it is written whole or not at all.
        file: The weights, where `source` does not name them: instead of a download.
        labels: The names of the outputs where the source has none (empty to drop one), or a new head's observations.

    Raises:
        WeightsError: If the source is unknown, cannot be read or fetched, or does not fit.
        FolderError: If `output` is not new or empty, or cannot be written.
    """
    require_empty(output)
    foreign = read_source(source, file=file, labels=labels)
    model = foreign.build()
    with new_folder(output) as folder:
        save_imported_folder(folder, model, foreign.processor, foreign.origin)
    return ImportedFolder(output, model.config.observations, dict(model.config.operating_points or {}), foreign.remarks)


def read_source(source: str, *, file: Path | None = None, labels: Sequence[str] | None = None) -> ForeignModel:
    """The model of a source; see `import_model`."""
    kind, _, rest = source.partition(":")
    if kind == "torchvision" and not rest:
        return from_torchvision(read_weight_file(file).tensors if file else imagenet_state_dict(), labels)
    if kind == "torchxrayvision" and rest:
        if labels is not None:
            raise WeightsError("torchxrayvision's outputs have names; leave out --labels.")
        published = published_model(rest)
        return to_ours(published, read_weight_file(file or fetched_file(published)).tensors, rest)
    if kind == "jfhealthcare":
        raise WeightsError(_JFHEALTHCARE)
    if kind not in ("stanford", "student", "timm"):
        raise WeightsError(f"Unknown source {source!r}; expected one of: {SOURCES}.")
    if bool(rest) == bool(file):
        raise WeightsError(f"Expected {kind}:FILE, or --file FILE, and not both.")
    path = file or Path(rest)
    if kind == "timm":
        return from_timm(path, labels)
    read = from_stanford if kind == "stanford" else from_student
    return read(read_weight_file(path), labels, path.name)
