"""Time and memory of the patient bootstrap: `python -m tests.benchmarks.evaluation_speed`.

25,000 studies, 14 observations and 1,000 resamples by default, all five figures; with `--assess` a whole assessment
with subgroups, gaps and a second model.
"""

import argparse
import resource
import time

import numpy as np

from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.intervals import PatientBootstrap
from chexpert_hf.evaluation.metrics import WeightedMetrics
from chexpert_hf.labels import OBSERVATIONS


def example(num_studies, seed=0):
    """Scores, labels and patients with prevalences from 2 to 50 %, about three studies per patient."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_studies, len(OBSERVATIONS))) < np.linspace(0.02, 0.5, len(OBSERVATIONS))).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=labels.shape) + 2 * labels - 2)))
    return scores, labels, [f"patient{i}" for i in rng.integers(0, max(1, num_studies // 3), num_studies)]


def bootstrap_figures(scores, labels, patients, replicates):
    figures = [WeightedMetrics(*pair) for pair in zip(scores.T, labels.T, strict=True)]
    bootstrap = PatientBootstrap(patients, replicates)
    return bootstrap.replicate(lambda weights: np.stack([figure(weights) for figure in figures]))


def whole_assessment(scores, labels, patients, replicates):
    rng = np.random.default_rng(1)
    models = [ModelScores("first", scores), ModelScores("second", np.clip(scores + 0.01, 0, 1))]
    studies = [f"study{i}" for i in range(len(labels))]
    subgroups = {
        "sex": rng.choice(["F", "M"], len(labels)).tolist(),
        "age": rng.choice(["0-39", "40-59", "60-79", "80+"], len(labels)).tolist(),
        "view": rng.choice(["frontal", "lateral"], len(labels)).tolist(),
    }
    return assess(models, labels, studies, patients, OBSERVATIONS, subgroups, replicates=replicates)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=25_000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--assess", action="store_true")
    options = parser.parse_args()
    data = example(options.studies)
    start = time.perf_counter()
    (whole_assessment if options.assess else bootstrap_figures)(*data, options.replicates)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux
    what = "two models assessed" if options.assess else "five figures bootstrapped"
    print(
        f"{what}: {options.studies:,} studies, {len(OBSERVATIONS)} observations, {options.replicates:,} resamples: "
        f"{seconds:.1f} s, peak memory of the process {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
