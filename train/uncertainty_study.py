"""Compare the uncertainty policies on phantoms, where the true values of uncertain labels are known.

    python -m train.uncertainty_study --output runs/uncertainty

Phantoms are labelled in three ways in which a report labeler might be uncertain: uncertain is mostly positive (all but
the largest pleural effusions), mostly negative (every opacity that is no consolidation), or a middle class
(pneumothoraces close to the smallest size that counts as positive). A small DenseNet is trained on these labels with
every policy. Its checkpoint is chosen on other phantoms with such labels, and it is evaluated on further phantoms with
their true labels. Writes a table, a plot, and the metrics as JSON.

The study shows which policy suits which kind of uncertainty, and that the policies work as described. It shows neither
what uncertain labels of CheXpert mean nor how good a policy is on radiographs: the images are drawings, and the kinds
of uncertainty are invented.
"""

import argparse
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.labels import UncertaintyPolicy
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.run import train

MOSTLY_POSITIVE, MOSTLY_NEGATIVE, MIDDLE_CLASS = "Pleural Effusion", "Consolidation", "Pneumothorax"
MEANINGS = {
    MOSTLY_POSITIVE: "uncertain is mostly positive",
    MOSTLY_NEGATIVE: "uncertain is mostly negative",
    MIDDLE_CLASS: "uncertain is a middle class",
}
OBSERVATIONS = tuple(MEANINGS)
PLAIN = tuple(
    policy.value for policy in (UncertaintyPolicy.U_IGNORE, UncertaintyPolicy.U_ZEROS, UncertaintyPolicy.U_ONES)
)
POLICIES = tuple(policy.value for policy in UncertaintyPolicy)

RECIPE = Recipe(
    observations=OBSERVATIONS,
    init="random",
    architecture={"growth_rate": 16, "block_config": [2, 4, 8], "num_init_features": 32, "bn_size": 2},
    num_channels=1,
    image_size=96,
    frontal_only=True,
    epochs=8,
    batch_size=32,
    learning_rate=3e-3,
    schedule="cosine",
    warmup=0.1,
    weight_decay=0.01,
    precision="fp32",
    keep_checkpoints=1,
)
REPLICATES = 1000
UNSEEN_STUDIES = 800
RELABELLED = "relabelled.txt"


def main() -> None:
    """Run the study and write its tables."""
    arguments = _parse()
    disable_progress_bar()
    data, unseen = arguments.output / "phantoms", arguments.output / "unseen"
    if not (unseen / RELABELLED).exists():
        draw(data, unseen, arguments.studies)
    test = load_dataset(unseen, splits=["valid"], observations=OBSERVATIONS, frontal_only=True)["valid"]
    truth = np.asarray(test["labels"][:])
    scores: dict[str, list[NDArray[np.float64]]] = {policy: [] for policy in POLICIES}
    for seed in range(arguments.seeds):
        for policy in POLICIES:
            folder = train_policy(policy, seed, data, arguments.output)
            scores[policy].append(predict_dataset(CheXpertClassifier.from_pretrained(folder), test))
            print(f"{policy}, seed {seed}: done")
    figures = summarize(scores, truth, test["patient"][:])
    (arguments.output / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    plot(figures, arguments.output / "uncertainty_study.png")
    table = as_markdown(figures, arguments.seeds)
    (arguments.output / "uncertainty_study.md").write_text(table, encoding="utf-8")
    print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="output folder; finished parts are not repeated")
    parser.add_argument("--studies", type=int, default=2000, help="number of studies, four fifths of them for training")
    parser.add_argument("--seeds", type=int, default=2, help="training runs of each policy")
    return parser.parse_args()


def train_policy(policy: str, seed: int, data: Path, output: Path) -> Path:
    """Train or resume one model and return its folder; U-SelfTrained's teacher is the U-Ignore model of that seed."""
    recipe = RECIPE.override(policy=policy, seed=seed)
    if policy == UncertaintyPolicy.U_SELF_TRAINED.value:
        recipe = recipe.override(teacher=str(output / f"{UncertaintyPolicy.U_IGNORE.value}-{seed}"))
    folder = output / f"{policy}-{seed}"
    return train(recipe, data, folder, resume=(folder / "recipe.yaml").exists(), say=_say_nothing).folder


def _say_nothing(_line: str) -> None:
    """Discard a message of training: the study reports its own progress."""


def draw(data: Path, unseen: Path, num_studies: int) -> None:
    """Draw phantoms into `data` for training, with noisy labels, and others into `unseen`, with the true labels."""
    print(f"Drawing {num_studies} phantoms for training and {UNSEEN_STUDIES} for evaluation.")
    workers = os.cpu_count() or 1
    write_phantoms(data, num_studies=num_studies, seed=11, workers=workers)
    write_phantoms(unseen, num_studies=UNSEEN_STUDIES, seed=12, valid_fraction=0.999, workers=workers)
    planted, sizes = planted_and_sizes(data)
    counts_from = sizes[MIDDLE_CLASS][sizes[MIDDLE_CLASS] > 0].median()
    _write_labels(
        data, noisy_labels(hidden_truth(planted, sizes, counts_from), planted, sizes, np.random.default_rng(11))
    )
    planted, sizes = planted_and_sizes(unseen)
    _write_labels(unseen, hidden_truth(planted, sizes, counts_from))
    (unseen / RELABELLED).touch()


def planted_and_sizes(root: Path) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Return a table of the findings drawn in each image, and observation -> fraction of each image that it covers.

    The fractions are for effusions and pneumothoraces; both are indexed by the images' paths.
    """
    planted = pd.read_csv(root / "truth.csv").set_index("Path")
    return planted, {name: _mask_sizes(root, planted, name) for name in (MOSTLY_POSITIVE, MIDDLE_CLASS)}


def _write_labels(root: Path, labels: pd.DataFrame) -> None:
    for file in (root / "train.csv", root / "valid.csv"):
        table = pd.read_csv(file)
        for name in OBSERVATIONS:
            table[name] = labels[name].reindex(table["Path"]).to_numpy()
        table.to_csv(file, index=False)


def hidden_truth(planted: pd.DataFrame, sizes: dict[str, pd.Series], counts_from: float) -> pd.DataFrame:
    """Return the true labels: planted findings are positive, pneumothoraces only from a size of `counts_from`."""
    hidden = planted[list(OBSERVATIONS)].astype(float)
    hidden[MIDDLE_CLASS] = (sizes[MIDDLE_CLASS] >= counts_from).astype(float)
    return hidden


def noisy_labels(
    hidden: pd.DataFrame, planted: pd.DataFrame, sizes: dict[str, pd.Series], rng: np.random.Generator
) -> pd.DataFrame:
    """Return the training labels 1, 0 and -1 (uncertain), made from the true ones by the three kinds of uncertainty."""
    noisy = hidden.copy()
    small = sizes[MOSTLY_POSITIVE]
    is_small = (small > 0) & (small <= small[small > 0].quantile(0.8))
    noisy.loc[is_small | _some(hidden[MOSTLY_POSITIVE] == 0, 0.01, rng), MOSTLY_POSITIVE] = -1
    looks_alike = (planted["Lung Opacity"] == 1) & (hidden[MOSTLY_NEGATIVE] == 0)
    few_positives = _some(hidden[MOSTLY_NEGATIVE] == 1, 0.1, rng)
    noisy.loc[looks_alike | few_positives, MOSTLY_NEGATIVE] = -1
    size = sizes[MIDDLE_CLASS]
    low, high = size[size > 0].quantile([0.2, 0.8])
    noisy.loc[(size > low) & (size < high), MIDDLE_CLASS] = -1
    return noisy


def _some(candidates: pd.Series, share: float, rng: np.random.Generator) -> pd.Series:
    return candidates & (rng.random(len(candidates)) < share)


def _mask_sizes(root: Path, truth: pd.DataFrame, observation: str) -> pd.Series:
    """Return the fraction of each image that the planted `observation` covers, by path; 0 where there is none."""

    def size(path: str) -> float:
        view = Path(path).relative_to(root.name).with_suffix("")
        mask = root / "masks" / view / f"{observation}.png"
        return float(np.asarray(Image.open(mask)).mean()) if mask.exists() else 0.0

    return pd.Series({path: size(path) for path in truth.index})


def auroc(scores: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute the AUROC of each column by the rank sum, without ties; fast enough for a thousand replicates."""
    order = np.argsort(np.argsort(scores, axis=0), axis=0) + 1
    positive = labels.sum(axis=0)
    return ((order * labels).sum(axis=0) - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


def summarize(
    scores: dict[str, list[NDArray[np.float64]]], truth: NDArray[np.floating], patients: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Compute each policy's AUROC by observation, and its differences from the plain policies, with 95 % intervals.

    Values are means over the seeds; intervals are percentiles over resampled patients and exclude the variation between
    training runs.

    Args:
        scores: Policy -> `(num_images, num_labels)` of each seed.
        truth: The true labels, `(num_images, num_labels)`.
        patients: Patient of each image.

    Returns:
        Observation -> policy -> metrics.
    """
    rows_of = pd.Series(range(len(patients))).groupby(list(patients)).apply(list).tolist()
    rng = np.random.default_rng(0)
    samples = [
        np.concatenate([rows_of[i] for i in rng.integers(0, len(rows_of), len(rows_of))]) for _ in range(REPLICATES)
    ]

    def over(rows: NDArray[np.intp]) -> dict[str, NDArray[np.float64]]:
        return {
            policy: np.mean([auroc(one[rows], truth[rows]) for one in runs], axis=0) for policy, runs in scores.items()
        }

    point, replicates = over(np.arange(len(truth))), [over(rows) for rows in samples]
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for column, name in enumerate(OBSERVATIONS):
        figures[name] = {}
        for policy in scores:
            values = np.array([replicate[policy][column] for replicate in replicates])
            figures[name][policy] = {
                "auroc": float(point[policy][column]),
                "low": float(np.quantile(values, 0.025)),
                "high": float(np.quantile(values, 0.975)),
                **_differences(policy, column, point, replicates),
            }
    return figures


def _differences(
    policy: str,
    column: int,
    point: dict[str, NDArray[np.float64]],
    replicates: Sequence[dict[str, NDArray[np.float64]]],
) -> dict[str, float]:
    """Compute a policy's paired differences in AUROC from U-Ignore, U-Zeros and U-Ones: value, low and high of each."""
    found = {}
    for other in PLAIN:
        values = np.array([replicate[policy][column] - replicate[other][column] for replicate in replicates])
        found |= {
            f"minus {other}": float(point[policy][column] - point[other][column]),
            f"minus {other}, low": float(np.quantile(values, 0.025)),
            f"minus {other}, high": float(np.quantile(values, 0.975)),
        }
    return found


def as_markdown(figures: dict[str, dict[str, dict[str, float]]], seeds: int) -> str:
    """Return the metrics as a table, with the best policy of each observation in bold, and the paired differences."""
    lines = ["| policy | " + " | ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items()) + " |"]
    lines.append("| --- |" + " --- |" * len(MEANINGS))
    best = {name: max(values, key=lambda policy: values[policy]["auroc"]) for name, values in figures.items()}
    for policy in POLICIES:
        cells = []
        for name in OBSERVATIONS:
            value = figures[name][policy]
            mark = "**" if best[name] == policy else ""
            cells.append(f"{mark}{value['auroc']:.3f}{mark} ({value['low']:.3f} to {value['high']:.3f})")
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"AUROC against the true labels of unseen phantoms, mean of {seeds} training runs; in brackets the 95 % "
        f"interval over {REPLICATES:,} resamplings of the patients, which excludes the variation between training "
        "runs.",
        "",
        "Paired differences between the plain policies:",
        "",
        *(
            f"- {name}: "
            + "; ".join(
                f"{one} minus {other} {values[f'minus {other}']:+.3f} "
                f"({values[f'minus {other}, low']:+.3f} to {values[f'minus {other}, high']:+.3f})"
                for one, other in itertools.combinations(reversed(PLAIN), 2)
                for values in [figures[name][one]]
            )
            for name in OBSERVATIONS
        ),
    ]
    return "\n".join(lines) + "\n"


def plot(figures: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draw a panel for each observation, with a dot and its interval for each policy, into an image file."""
    figure = Figure(figsize=(10, 3.6), dpi=150, layout="constrained")
    places = np.arange(len(POLICIES))[::-1]
    first = None
    for number, (name, values) in enumerate(figures.items()):
        axes = figure.add_subplot(1, len(figures), number + 1, sharey=first)
        first = first or axes
        points = np.array([values[policy]["auroc"] for policy in POLICIES])
        low, high = (np.array([values[policy][end] for policy in POLICIES]) for end in ("low", "high"))
        best = int(points.argmax())
        colors = ["#D55E00" if i == best else "#0072B2" for i in range(len(points))]
        axes.errorbar(
            points, places, xerr=[points - low, high - points], fmt="none", ecolor="0.6", elinewidth=1.5, capsize=3
        )
        axes.scatter(points, places, c=colors, zorder=3, s=36)
        axes.set_title(f"{name}\n{MEANINGS[name]}", fontsize=10)
        axes.set_xlabel("AUROC by the hidden truth")
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelleft=number == 0)
    if first is not None:
        first.set_yticks(places, POLICIES)
    figure.savefig(path)


if __name__ == "__main__":
    main()
