import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexpert_hf.gate.features import NUM_FEATURES, gate_features, gray_levels
from chexpert_hf.phantoms import write_phantoms
from train import child_discriminant


@pytest.mark.slow
def test_children_of_both_sources_exceed_the_limit_that_is_written_and_adults_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here a child's radiograph is twice as broad as high: the lungs are squashed."""
    data, children, output = tmp_path / "data", tmp_path / "children", tmp_path / "children.json"
    write_phantoms(data, num_studies=70, seed=3, valid_fraction=0.1)
    table = pd.read_csv(data / "train.csv")
    files = [data / "/".join(path.split("/")[1:]) for path in table["Path"]]
    table["Age"] = [5 if number % 6 == 0 else 15 if number % 6 == 1 else 50 for number in range(len(table))]
    table.to_csv(data / "train.csv", index=False)

    def squash(file: Path, to: Path) -> None:
        image = Image.open(file)
        squashed = Image.new("L", image.size)
        squashed.paste(image.resize((image.width, image.height // 2)), (0, image.height // 4))
        squashed.save(to)

    for file, age in zip(files, table["Age"], strict=True):
        if age == 5:
            squash(file, file)
    children.mkdir()
    for number, file in enumerate(np.array(files)[(table["Age"] == 50).to_numpy()][:12]):
        squash(file, children / f"person{number}_virus_{number}.jpg")
    monkeypatch.setattr(child_discriminant, "PHANTOMS", 4)
    monkeypatch.setattr(sys, "argv", ["x", str(data), "--children", str(children), "--output", str(output)])
    child_discriminant.main()

    record = json.loads(output.read_text())
    assert len(record["weights"]) == NUM_FEATURES

    def scores(files: list[Path]) -> list[float]:
        return [float(gate_features(gray_levels(Image.open(file))[None])[0] @ record["weights"]) for file in files]

    assert min(scores(list(children.glob("*.jpg")))) > record["limit"]
    frontal = table["Frontal/Lateral"] == "Frontal"
    adults = [file for file, is_one in zip(files, (table["Age"] == 50) & frontal, strict=True) if is_one]
    assert max(scores(adults)) < record["limit"]
    known = child_discriminant.samples(data, children)
    everything = np.ones(len(known.features), dtype=bool)
    model, (_, limit) = (
        child_discriminant.fitted(known, everything),
        child_discriminant.cross_validated(known, everything),
    )
    excess = known.features @ record["weights"] - record["limit"]
    assert np.allclose(excess, model.decision_function(known.features) - limit, atol=1e-4)
    printed = capsys.readouterr().out
    assert "cross-validation: 12 of 12 children of children" in printed
    assert f"of {len(adults)} adults of nih" in printed  # those between 12 and 18 years are left out
