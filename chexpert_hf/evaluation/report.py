"""An evaluation as text."""

from math import isnan

from chexpert_hf.evaluation.metrics import Evaluation


def as_table(evaluation: Evaluation) -> str:
    """One line per observation with its numbers of studies and AUROC, and the mean with what it covers."""
    width = max(len(item.observation) for item in evaluation.observations)
    lines = [f"{'observation':<{width}}  positive  negative  AUROC"]
    for item in evaluation.observations:
        value = "not judged: one class only" if isnan(item.auroc) else f"{item.auroc:5.3f}"
        lines.append(f"{item.observation:<{width}}  {item.num_positive:>8,}  {item.num_negative:>8,}  {value}")
    if evaluation.mean_over:
        lines.append(f"Mean AUROC {evaluation.mean_auroc:.3f} over {', '.join(evaluation.mean_over)}")
    lines.append(f"{evaluation.num_studies:,} studies, maximum over the views of each.")
    return "\n".join(lines)
