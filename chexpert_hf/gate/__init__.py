"""The gate: decides whether an image is a chest radiograph. It is fitted on a model's training images."""

from chexpert_hf.gate.gate import GATE_FILE, Gate, GateInput, Verdict

__all__ = ["GATE_FILE", "Gate", "GateInput", "Verdict"]
