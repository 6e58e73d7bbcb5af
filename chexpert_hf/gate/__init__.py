"""Is it a chest radiograph? A gate that is fitted on a model's training images and stored in its folder."""

from chexpert_hf.gate.gate import GATE_FILE, Gate, GateInput, Verdict

__all__ = ["GATE_FILE", "Gate", "GateInput", "Verdict"]
