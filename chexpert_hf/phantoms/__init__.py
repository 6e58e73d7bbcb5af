"""Phantoms: synthetic chest radiographs in CheXpert's layout, with true labels and an exact mask of each finding."""

from chexpert_hf.phantoms.folder import write_phantoms
from chexpert_hf.phantoms.rendering import PROJECTIONS, Phantom, render_phantom

__all__ = ["PROJECTIONS", "Phantom", "render_phantom", "write_phantoms"]
