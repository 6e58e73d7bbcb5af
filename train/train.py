# /// script
# requires-python = ">=3.10"
# dependencies = ["chexpert-hf"]
#
# [tool.uv.sources]
# chexpert-hf = { path = "..", editable = true }
# ///
"""Training as a script; the options are those of `chexpert-hf train`.

    accelerate launch -m train.train DATA --output DIR ...      in an environment with this package, on several GPUs
    uv run train/train.py DATA --output DIR ...                 in a checkout, without any environment

uv makes an environment by the lines at the top of this file. They name the checkout that the file is in, since the
package is on no index. Where the file is sent alone, as `hf jobs uv run` does, there is no checkout around it: put the
address of a git repository that holds this project into that line first (`chexpert-hf = { git = "https://..." }`), and
let the job write to the Hub, since its disk is gone afterwards: `--push-to-hub REPO_ID`, with HF_TOKEN as a secret.
"""

import sys

from chexpert_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
