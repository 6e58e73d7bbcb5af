"""How often the 95 % intervals of an AUROC hold the true one: `python -m tests.benchmarks.delong_coverage`.

Scores are normal with unit variance, the positives' mean shifted so that the true AUROC is known. "ours" is what
`delong_interval` gives, "plain" is DeLong on the scale of the AUROC with the normal distribution, "newcombe" the score
interval that needs no variance estimate. The second table has four studies of each patient, alike in score and label,
and tells `delong_interval` whose they are ("ours") or not ("alone").
"""

import argparse
from math import sqrt

import numpy as np
from scipy.stats import norm

from chexpert_hf.evaluation.intervals import LEVEL, delong_interval, delong_variance, newcombe_interval

AUROCS, PREVALENCES = (0.7, 0.85, 0.95, 0.98), (0.1, 0.2, 0.3, 0.4, 0.5)


def intervals(scores, labels):
    """Low and high by each method."""
    z = norm.isf((1 - LEVEL) / 2)
    estimate = delong_interval(scores, labels)
    width = z * sqrt(delong_variance(scores, labels))
    newcombe = newcombe_interval(estimate.value, int((labels == 1).sum()), int((labels == 0).sum()))
    return {
        "ours": (estimate.low, estimate.high),
        "plain": (estimate.value - width, estimate.value + width),
        "newcombe": (newcombe.low, newcombe.high),
    }


def coverage(true_auroc, prevalence, num_studies, num_sets, seed):
    """Share of data sets whose interval holds the true AUROC, by method."""
    rng = np.random.default_rng(seed)
    hits = {"ours": 0, "plain": 0, "newcombe": 0}
    labels = np.zeros(num_studies)
    labels[: round(prevalence * num_studies)] = 1
    for _ in range(num_sets):
        scores = rng.normal(size=num_studies) + labels * norm.ppf(true_auroc) * sqrt(2)
        for method, (low, high) in intervals(scores, labels).items():
            hits[method] += low <= true_auroc <= high
    return {method: count / num_sets for method, count in hits.items()}


def clustered_coverage(true_auroc, prevalence, num_studies, num_sets, seed, per_patient=4):
    """The same where the studies of a patient share half of the variance of their score, and mostly the label."""
    rng = np.random.default_rng(seed)
    num_patients = num_studies // per_patient
    patients = np.repeat(np.arange(num_patients), per_patient)
    hits = {"ours": 0, "alone": 0}
    for _ in range(num_sets):
        is_ill = np.arange(num_patients) < round(prevalence * num_patients)
        is_changed = rng.random(num_studies) < 0.1
        labels = (is_ill[patients] ^ is_changed).astype(float)
        noise = (rng.normal(size=num_patients)[patients] + rng.normal(size=num_studies)) / sqrt(2)
        scores = noise + labels * norm.ppf(true_auroc) * sqrt(2)
        for method, whose in (("ours", patients), ("alone", None)):
            estimate = delong_interval(scores, labels, whose)
            hits[method] += estimate.low <= true_auroc <= estimate.high
    return {method: count / num_sets for method, count in hits.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"Coverage of 95 % intervals, {options.sets} data sets of {options.studies} studies each")
    print("AUROC  prevalence    ours   plain  newcombe")
    for true_auroc in AUROCS:
        for prevalence in PREVALENCES:
            shares = coverage(true_auroc, prevalence, options.studies, options.sets, options.seed)
            row = "   ".join(f"{share:5.3f}" for share in shares.values())
            print(f"{true_auroc:5.2f}  {prevalence:10.1f}   {row}")
    print("\nFour studies per patient\nAUROC  prevalence    ours   alone")
    for true_auroc in AUROCS:
        for prevalence in PREVALENCES:
            shares = clustered_coverage(true_auroc, prevalence, options.studies, options.sets, options.seed)
            row = "   ".join(f"{share:5.3f}" for share in shares.values())
            print(f"{true_auroc:5.2f}  {prevalence:10.1f}   {row}")


if __name__ == "__main__":
    main()
