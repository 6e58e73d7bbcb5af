"""Contenders whose processes import this module and nothing heavy: one writes down its turns, one is broken."""

from pathlib import Path

from chexpert_hf.bench.measure import Contender


class Recorder(Contender):
    def __init__(self, name: str, log: str) -> None:
        self.batch_size, self.name, self.log = 1, name, Path(log)

    def score(self, paths):
        if len(paths) > 32:  # all files: a turn; scores are compared on fewer
            with self.log.open("a") as file:
                file.write(self.name)

    def forward(self, count):
        print("a library's output")


class Broken(Recorder):
    def __init__(self, reason: str) -> None:
        raise OSError(reason)
