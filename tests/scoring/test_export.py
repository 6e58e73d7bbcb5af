"""Graphs in a model folder: what is written, what is refused, and when a graph that is there is used."""

import importlib.util
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chexpert_hf
from chexpert_hf import CheXpertClassifier, CheXpertForImageClassification, CheXpertImageProcessor, cli
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError
from chexpert_hf.files import sha256_of
from chexpert_hf.models.graph_files import GRAPH_FILES, hashes, read_records, write_records
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.radiographs.radiograph import read_radiograph
from chexpert_hf.scoring.graphs import export
from chexpert_hf.scoring.graphs.conversion import excess
from chexpert_hf.scoring.graphs.export import export_model
from chexpert_hf.scoring.runtimes import Precision, RuntimeName, open_runtime

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime", "openvino", "nncf"):  # not imported here, where they would call home
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

SIZE = (64, 64)
BOUNDS = {"fp32": 1e-5, "fp16": 0.01, "int8": 0.03}
KINDS = [(runtime.value, precision.value) for runtime, precision in GRAPH_FILES]


@pytest.fixture(scope="module")
def plain_folder(shared_tiny_model, tmp_path_factory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shared_tiny_model.save_pretrained(folder)
    CheXpertImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    (folder / "README.md").write_text("A card.")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "large.bin").write_text("of training")
    return folder


@pytest.fixture(scope="module")
def remembered(plain_folder, tmp_path_factory):
    """`write_graph` for the model of `plain_folder`, which converts once for each runtime."""
    root, convert = tmp_path_factory.mktemp("graphs"), export.write_graph

    def write(model, runtime, path, input_size):
        kept = root / GRAPH_FILES[runtime, Precision.FP32]
        if not kept.exists():
            convert(model, runtime, kept, input_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in kept.parent.iterdir():
            shutil.copy(file, path.parent / file.name.replace(kept.stem, path.stem))

    return write


@pytest.fixture(scope="module")
def shared_exported(plain_folder, remembered, tmp_path_factory) -> Path:
    """A folder with all graphs; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_graph", remembered)
        patch.setattr(export, "CALIBRATION_IMAGES", 24)
        for kind in KINDS:
            export_model(plain_folder, *kind, output=folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fast(remembered, monkeypatch):
    monkeypatch.setattr(export, "write_graph", remembered)


@pytest.fixture
def exported(shared_exported, tmp_path) -> Path:
    return Path(shutil.copytree(shared_exported, tmp_path / "exported"))


@pytest.fixture
def folder(plain_folder, tmp_path) -> Path:
    return Path(shutil.copytree(plain_folder, tmp_path / "model"))


def opened(folder: Path, runtime: str, precision: str, model=None, input_size=SIZE):
    model = model or CheXpertForImageClassification.from_pretrained(folder).eval()
    return open_runtime(model, folder=folder, runtime=runtime, precision=precision, input_size=input_size)


def radiograph_values(folder: Path, count: int = 6) -> torch.Tensor:
    drawn = [chexpert_hf.phantoms.render_phantom(seed).image for seed in range(count)]
    return CheXpertImageProcessor.from_pretrained(folder)(drawn, return_tensors="pt")["pixel_values"]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_radiographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 70), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


# What is written


@pytest.mark.parametrize(("runtime", "precision"), KINDS)
def test_an_exported_graph_is_used_and_gives_the_models_probabilities(runtime, precision, exported, shared_tiny_model):
    session = opened(exported, runtime, precision)
    name = GRAPH_FILES[RuntimeName(runtime), Precision(precision)]
    assert f"with the exported {name}" in session.reason
    assert (session.name, session.precision) == (runtime, precision)
    pixel_values = radiograph_values(exported)
    with torch.no_grad():
        wanted = shared_tiny_model(pixel_values, output_saliency=True)
    logits, maps = session(pixel_values, saliency=True)
    difference = (logits.sigmoid() - wanted.logits.sigmoid()).abs().max()
    assert difference < BOUNDS[precision]
    assert precision == "fp32" or difference > 1e-6  # it is not the float32 graph under another name
    assert maps.shape == wanted.saliency.shape


@pytest.mark.parametrize(("runtime", "precision"), KINDS)
def test_the_record_says_what_was_made_from_what_and_how_far_it_is_from_it(runtime, precision, shared_exported):
    name = GRAPH_FILES[RuntimeName(runtime), Precision(precision)]
    record = json.loads((shared_exported / "export.json").read_text())["graphs"][name]
    assert (record["runtime"], record["precision"], record["input_size"]) == (runtime, precision, [64, 64])
    assert record["weights_sha256"] == sha256_of(shared_exported / "model.safetensors")
    assert record["sha256"] == {file: sha256_of(shared_exported / file) for file in record["sha256"]}
    assert {"torch", "chexpert-hf", "openvino" if runtime == "openvino" else "onnxruntime"} <= set(record["versions"])
    parity = record["parity"]
    assert parity["num_images"] == (12 if precision == "int8" else 16)
    largest = parity["max_abs_probability_difference"]
    assert 0 <= parity["p99_abs_probability_difference"] <= largest < BOUNDS[precision]
    assert record["calibration"] == ({"data": "phantoms", "num_images": 24} if precision == "int8" else None)


def test_halved_and_quantised_graphs_are_smaller(shared_exported):
    sizes = {kind: (shared_exported / name).stat().st_size for kind, name in GRAPH_FILES.items()}
    assert sizes[RuntimeName.ONNX, Precision.FP16] < sizes[RuntimeName.ONNX, Precision.FP32]
    weights = {
        precision: (shared_exported / GRAPH_FILES[RuntimeName.OPENVINO, precision]).with_suffix(".bin").stat().st_size
        for precision in (Precision.FP32, Precision.FP16, Precision.INT8)
    }
    assert weights[Precision.FP16] == pytest.approx(weights[Precision.FP32] / 2, rel=0.1)
    assert weights[Precision.INT8] < weights[Precision.FP32]  # of a model this small, scales are a third


def test_graphs_name_no_place_or_file_of_this_machine(shared_exported, plain_folder):
    places = [Path(chexpert_hf.__file__).parent, Path(sys.prefix), plain_folder.parent.parent, Path.home(), Path.cwd()]
    traces = [*(f"{place}/" for place in places), ".py", "Traceback", "stack_trace"]
    for file, content in files_in(shared_exported).items():
        if Path(file).parent.name in ("onnx", "openvino") or file == "export.json":
            assert [trace for trace in traces if trace.encode() in content] == [], file


def test_an_onnx_graph_has_the_names_that_others_look_for_and_a_dynamic_batch(shared_exported):
    for name in ("model.onnx", "model_fp16.onnx", "model_quantized.onnx"):
        graph = onnx.load(shared_exported / "onnx" / name).graph
        assert [value.name for value in graph.input] == ["pixel_values"]
        assert [value.name for value in graph.output] == ["logits", "saliency"]
        shape = graph.input[0].type.tensor_type.shape.dim
        assert (shape[0].dim_param, [side.dim_value for side in shape[1:]]) == ("batch", [3, 64, 64])
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("name", [name for name in GRAPH_FILES.values() if name.endswith(".onnx")])
def test_every_onnx_graph_passes_the_checker(name, shared_exported):
    onnx.checker.check_model(onnx.load(shared_exported / name), full_check=True)


def test_the_first_convolutions_and_the_head_are_not_quantised(shared_exported):
    graph = onnx.load(shared_exported / "onnx" / "model_quantized.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantised = [makers.get(node.input[0]) == "DequantizeLinear" for node in convolutions]
    assert quantised == [False] * 3 + [True] * (len(convolutions) - 4) + [False]  # the last one makes the maps
    assert [makers.get(node.input[0]) for node in graph.node if node.op_type == "Gemm"] != ["DequantizeLinear"]


def test_no_level_of_int8_is_spent_on_what_a_relu_cuts_off(shared_exported):
    graph = onnx.load(shared_exported / "onnx" / "model_quantized.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    assert "DequantizeLinear" not in [makers[node.input[0]] for node in graph.node if node.op_type == "Relu"]


@pytest.mark.skipif("CHEXPERT_HF_REAL_DATA" not in os.environ, reason="needs real radiographs")
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_int8_of_the_bundled_model_is_within_its_bound_on_radiographs_of_others(runtime, tmp_path, monkeypatch):
    data = Path(os.environ["CHEXPERT_HF_REAL_DATA"])
    monkeypatch.setattr(export, "CALIBRATION_IMAGES", 40)
    model = tmp_path / "model"
    size = export_model(DEFAULT_MODEL, runtime, "int8", output=model, calibration=data / "NIH-mini").record.input_size
    files = sorted((data / "NIH" / "valid").rglob("*.jpg"))[::9]
    images = [read_radiograph(file) for file in files]
    pixel_values = CheXpertImageProcessor.from_pretrained(model)(images, return_tensors="pt")["pixel_values"]
    wanted, got = (
        opened(model, *kind, input_size=size)(pixel_values)[0].sigmoid()
        for kind in [("torch", "fp32"), (runtime, "int8")]
    )
    assert (got - wanted).abs().max() < BOUNDS["int8"]


# Where it is written


def test_a_new_folder_becomes_a_complete_copy_and_the_model_folder_stays_as_it_is(plain_folder, shared_exported):
    before = files_in(plain_folder)
    assert "export.json" not in before
    copied = files_in(shared_exported)
    assert before.pop("checkpoints/large.bin")
    assert before.items() <= copied.items()
    graphs = {f for name in GRAPH_FILES.values() for f in (name, name.replace(".xml", ".bin"))}
    assert set(copied) - set(before) == graphs | {"export.json"}
    assert CheXpertClassifier.from_pretrained(shared_exported, device="cpu").observations


def test_without_an_output_the_graph_goes_into_the_model_folder(folder, fast):
    before = files_in(folder)
    result = export_model(folder, "openvino")
    after = files_in(folder)
    assert before.items() <= after.items()
    assert set(after) - set(before) == {
        "openvino/openvino_model.xml",
        "openvino/openvino_model.bin",
        "export.json",
    }
    assert (result.folder, result.name) == (folder, "openvino/openvino_model.xml")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_bundled_model_gets_no_graph_and_the_error_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^nih is the bundled model: name a folder with --output for a copy of it"):
        export_model("nih", "onnx")


def test_a_graph_is_for_the_size_that_the_processor_gives_which_must_be_fixed(folder, fast):
    size, crop_size = {"shortest_edge": 72}, {"height": 64, "width": 64}
    CheXpertImageProcessor(size=size, do_center_crop=True, crop_size=crop_size).save_pretrained(folder)
    assert export_model(folder, "onnx").record.input_size == (64, 64)
    CheXpertImageProcessor(size=size).save_pretrained(folder)
    with pytest.raises(InputError, match=r"cannot be used: The size of pixel_values depends on .*; set crop_size\."):
        export_model(folder, "onnx")


def test_a_folder_with_something_else_in_it_is_left_alone(folder, tmp_path, fast):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=f"{other} holds something else than a copy of {folder}"):
        export_model(folder, "onnx", output=other)
    assert files_in(other) == {"thesis.txt": b"years of work"}
    with pytest.raises(InputError, match=r"thesis.txt is a file; expected a folder"):
        export_model(folder, "onnx", output=other / "thesis.txt")


@pytest.mark.parametrize("into_copy", [True, False])
def test_a_graph_beyond_the_bound_is_refused_and_nothing_is_left_of_it(into_copy, folder, tmp_path, monkeypatch, fast):
    write = export.write_graph

    def wrong(model, *arguments):  # the model is another one by the time that it is compared
        write(model, *arguments)
        model.classifier.bias.data += 0.001

    monkeypatch.setattr(export, "write_graph", wrong)
    before = {path.name for path in tmp_path.rglob("*")}
    with pytest.raises(
        InputError, match=r"not kept: a max abs logit difference of 0\.001 on 16 images, at most 0\.0001"
    ):
        export_model(folder, "openvino", output=tmp_path / "copy" if into_copy else None)
    assert {path.name for path in tmp_path.rglob("*")} == before


def test_int8_beyond_the_bound_is_refused_with_what_helps(folder, monkeypatch):
    write = export.write_graph

    def wrong(model, *arguments):
        model.classifier.bias.data += 1
        write(model, *arguments)

    monkeypatch.setattr(export, "CALIBRATION_IMAGES", 24)
    monkeypatch.setattr(export, "write_graph", wrong)
    with pytest.raises(
        InputError,
        match=r"int8 is too far .* probability difference of 0\.\d+ on 12 images, at most 0\.03 is allowed\. Quantise "
        r"on radiographs like those to be scored \(--calibration FOLDER\), or take --precision fp16",
    ):
        export_model(folder, "onnx", "int8")
    assert not (folder / "export.json").exists()


@pytest.mark.parametrize(
    ("precision", "values", "is_refused"),
    [
        ("fp32", (0.5, 0.5, 0.9e-4), False),
        ("fp32", (0.0, 0.0, 1.1e-4), True),
        ("fp16", (0.009, 0.009, 5.0), False),
        ("fp16", (0.011, 0.001, 0.0), True),
        ("int8", (0.029, 0.029, 5.0), False),
        ("int8", (0.031, 0.001, 0.0), True),
        ("int8", (float("nan"), 0.0, 0.0), True),
    ],
)
def test_the_bounds_are_those_that_the_readme_says(precision, values, is_refused):
    names = ("max_abs_probability_difference", "p99_abs_probability_difference", "max_abs_logit_difference")
    parity = {"num_images": 16, **dict(zip(names, values, strict=True))}
    assert (excess(parity, Precision(precision)) is not None) == is_refused


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_difference_that_is_no_number_exceeds_every_bound(value):
    parity = {"num_images": 3, "max_abs_logit_difference": value, "max_abs_probability_difference": 0.0}
    assert excess(parity, Precision.FP32) == "difference that is not finite, on 3 images"
    assert excess(parity | {"max_abs_logit_difference": 0.0}, Precision.FP32) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "torch"}, "There are no graphs for torch in fp32; expected one of: openvino in fp32"),
        ({"runtime": "onnx", "precision": "bf16"}, "There are no graphs for onnx in bf16"),
        ({"runtime": "onnx", "calibration": Path("x")}, "Images to calibrate on are for int8; fp32 needs none"),
    ],
)
def test_what_there_is_not_is_refused(arguments, message, plain_folder):
    with pytest.raises(InputError, match=message):
        export_model(plain_folder, **arguments)


# Images to quantise on


def test_int8_changes_no_level_of_logging_and_prints_nothing_of_nncf(folder, fast, capfd):
    export_model(folder, "openvino", "int8")
    assert logging.getLogger("nncf").level == logging.INFO  # as NNCF sets it
    assert "nncf" not in "".join(capfd.readouterr())


def test_int8_is_quantised_on_the_radiographs_of_a_folder_and_judged_on_others(folder, tmp_path, fast, monkeypatch):
    seen = {}
    quantise, compare = export.quantise_graph, export.measure_parity
    monkeypatch.setattr(export, "quantise_graph", lambda *a: seen.update(quantised=a[-1]) or quantise(*a))
    monkeypatch.setattr(export, "measure_parity", lambda *a: seen.update(compared=a[-1].numpy()) or compare(*a))
    radiographs = write_radiographs(tmp_path / "clinic", 12)
    record = export_model(folder, "onnx", "int8", calibration=radiographs).record
    assert record.calibration == {"data": "clinic", "num_images": 8}
    assert record.parity["num_images"] == 4
    assert len({image.tobytes() for images in seen.values() for image in images}) == 12  # each once


def test_int8_is_quantised_on_the_train_split_of_a_chexpert_folder(folder, tmp_path, fast, monkeypatch):
    write_phantoms(tmp_path / "phantoms", num_studies=20, seed=3, valid_fraction=0.5)
    read = []
    reader = chexpert_hf.scoring.graphs.export.read_radiograph
    monkeypatch.setattr(
        "chexpert_hf.scoring.graphs.export.read_radiograph",
        lambda path, **options: read.append(path) or reader(path, **options),
    )
    record = export_model(folder, "onnx", "int8", calibration=tmp_path / "phantoms").record
    assert record.calibration["data"] == "phantoms"
    assert len(read) >= 10
    assert all("/train/" in Path(path).as_posix() for path in read)


def test_images_to_quantise_on_that_cannot_be_used_are_refused(folder, tmp_path, fast):
    with pytest.raises(InputError, match=r"none is not a folder"):
        export_model(folder, "onnx", "int8", calibration=tmp_path / "none")
    radiographs = write_radiographs(tmp_path / "clinic", 9)
    with pytest.raises(InputError, match=r"clinic holds 9 radiographs; expected at least 10"):
        export_model(folder, "onnx", "int8", calibration=radiographs)
    (radiographs / "damaged.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"damaged\.png: "):
        export_model(folder, "onnx", "int8", calibration=radiographs)


# A graph that is there is used only if it is the model's


def test_a_graph_of_other_weights_is_passed_over(exported):
    model = CheXpertForImageClassification.from_pretrained(exported).eval()
    model.classifier.bias.data += 1
    session = opened(exported, "openvino", "fp32", model)
    assert "openvino/openvino_model.xml was made from other weights" in session.reason
    assert "converted just now" in session.reason
    pixel_values = radiograph_values(exported)
    with torch.no_grad():
        torch.testing.assert_close(session(pixel_values)[0], model(pixel_values).logits, atol=1e-4, rtol=0)
    with pytest.raises(
        InputError, match=r"no int8 graph of this model \(openvino/openvino_model_int8\.xml was made from"
    ):
        opened(exported, "openvino", "int8", model)


def test_a_graph_for_another_size_is_passed_over(exported):
    with pytest.raises(InputError, match=r"model_quantized\.onnx is for 64 x 64 pixels and not for 32 x 32"):
        opened(exported, "onnx", "int8", input_size=(32, 32))


@pytest.mark.parametrize("name", ["openvino/openvino_model_int8.bin", "openvino/openvino_model_int8.xml"])
def test_a_damaged_graph_is_not_used(name, exported):
    content = bytearray((exported / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (exported / name).write_bytes(content)
    with pytest.raises(InputError, match=r"openvino_model_int8\.xml is damaged: its files are not those that export"):
        opened(exported, "openvino", "int8")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_that_its_runtime_cannot_read_is_passed_over(precision, exported, fast, monkeypatch):
    monkeypatch.setattr("chexpert_hf.scoring.graphs.conversion.write_graph", export.write_graph)
    name = GRAPH_FILES[RuntimeName.ONNX, Precision(precision)]
    (exported / name).write_bytes(b"of a later version")
    records = read_records(exported)
    fields = vars(records[name]) | {"sha256": hashes(exported, [name])}
    write_records(exported, {**records, name: type(records[name])(**fields)})
    if precision == "int8":
        with pytest.raises(InputError, match=r"there is no int8 graph of this model \(.*[Pp]rotobuf"):
            opened(exported, "onnx", precision)
        return
    assert "converted just now" in opened(exported, "onnx", precision).reason


def test_a_graph_without_a_record_or_with_a_damaged_one_is_not_used(exported):
    (exported / "export.json").write_text('{"graphs": {}}')
    with pytest.raises(InputError, match=r"model_quantized\.onnx is not in export\.json"):
        opened(exported, "onnx", "int8")
    (exported / "export.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match=r"export\.json is damaged"):
        opened(exported, "onnx", "int8")


def test_auto_takes_the_int8_graph_that_there_is(exported):
    for file in ("openvino_model_int8.xml", "openvino_model_int8.bin"):
        (exported / "openvino" / file).unlink()
    model = CheXpertForImageClassification.from_pretrained(exported).eval()
    session = open_runtime(model, folder=exported, precision="int8", device="cpu", input_size=SIZE)
    assert session.name == "onnx"
    assert "Skipped: OpenVINO: there is no int8 graph" in session.reason


# The command


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["chexpert-hf", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def test_the_command_says_what_it_wrote_and_how_far_it_is_from_the_model(folder, fast, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "export", "--model", folder, "--runtime", "onnx")
    assert code == 0
    assert f"Wrote onnx/model.onnx to {folder}: onnx, fp32, 64 x 64 pixels, " in out
    assert "Largest differences from PyTorch in fp32 on 16 images: probability " in out
    assert " (99 % of them within " in out
    assert "Comparing with PyTorch on 16 images ..." in err


def test_the_command_prints_nothing_but_json_where_that_is_asked_for(folder, fast, monkeypatch, capsys):
    monkeypatch.setattr(export, "CALIBRATION_IMAGES", 12)
    options = ("--runtime", "openvino", "--precision", "int8", "--json")
    code, out, _ = run(monkeypatch, capsys, "export", "--model", folder, *options)
    assert code == 0
    result = json.loads(out)
    assert (result["folder"], result["graph"]) == (str(folder), "openvino/openvino_model_int8.xml")
    assert result["calibration"] == {"data": "phantoms", "num_images": 12}


def test_bad_input_to_the_command_is_a_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "export", "--model", tmp_path, "--runtime", "onnx")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "config.json" in err
