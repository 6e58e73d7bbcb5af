"""The metrics of one observation by scikit-learn and plain formulas, for the package's to be compared with."""

import numpy as np
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score


def on_known(metric, needs_both=True):
    """A metric of labels and scores as one of scores and labels of which some are unknown."""

    def figure(scores, labels):
        known = ~np.isnan(labels)
        is_defined = len(np.unique(labels[known])) > (1 if needs_both else 0)
        return metric(labels[known], scores[known]) if is_defined else float("nan")

    return figure


def _scaled_brier(labels, scores):
    return np.mean((scores - labels) ** 2) / (labels.mean() * (1 - labels.mean()))


def _calibration_error(labels, scores):
    bins = np.minimum(np.floor(scores * 15 + 1e-12), 14)
    errors = [abs(scores[bins == k].sum() - labels[bins == k].sum()) for k in range(15)]
    return sum(errors) / len(labels)


FIGURES = {
    "auroc": on_known(roc_auc_score),
    "auprc": on_known(average_precision_score),
    "brier": on_known(lambda labels, scores: brier_score_loss(labels, scores, pos_label=1), needs_both=False),
    "scaled_brier": on_known(_scaled_brier),
    "ece": on_known(_calibration_error, needs_both=False),
}
