# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "accelerate>=1.10",
#     "datasets>=5.2",
#     "evaluate>=0.4.6",
#     "fastapi>=0.115",
#     "gradio>=6.30,<7",
#     "huggingface-hub>=2.0",
#     "jinja2>=3.1",
#     "matplotlib>=3.9",
#     "numpy>=2.0",
#     "pandas>=2.2.2",
#     "pillow>=11.3,<13",
#     "pyarrow>=21",
#     "pydantic>=2.11",
#     "pydicom>=3.0.2",
#     "pylibjpeg>=2.1",
#     "pylibjpeg-openjpeg>=2.5",
#     "pylibjpeg-rle>=2.1",
#     "python-multipart>=0.0.18",
#     "pyyaml>=6.0",
#     "rich>=13",
#     "safetensors>=0.8",
#     "scikit-learn>=1.5",
#     "scipy>=1.13",
#     "torch>=2.8",
#     "torchvision>=0.23",
#     "tqdm>=4.66",
#     "transformers>=5.20,<6",
#     "typer>=0.19",
#     "typing-extensions>=4.12",
#     "uvicorn>=0.22",
# ]
# ///
"""Train as a script; the options are those of `chexpert-hf train`.

    torchrun --nproc_per_node N -m train.train DATA ...         in several processes, on GPUs or CPUs
    uv run train/train.py DATA --output DIR ...                 in a checkout, without any environment
    uv run --with WHEEL train.py DATA --output DIR ...          anywhere, as `hf jobs uv run` does it

uv creates an environment from the lines at the top of this file, which are the package's own requirements. The package
itself is on no index: an installed one is used, or the checkout that this file is in. If the file is sent alone, send a
wheel with it (`pip wheel . --no-deps -w dist` makes one); see train/README.md.
"""

import importlib.util
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    if importlib.util.find_spec("chexpert_hf") is None:
        if not (CHECKOUT / "chexpert_hf").is_dir():
            sys.exit("Error: chexpert_hf is neither installed nor beside it: uv run --with WHEEL train.py.")
        sys.path.insert(0, str(CHECKOUT))

    from chexpert_hf.cli import main

    sys.argv.insert(1, "train")
    main()
