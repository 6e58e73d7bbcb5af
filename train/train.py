"""For `accelerate launch -m train.train DATA --output DIR ...`; the options are those of `chexpert-hf train`."""

import sys

from chexpert_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
