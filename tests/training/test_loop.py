"""The loop's options are the flags of train.py, under the same names."""
import dataclasses

from test_house import flags_of

from training import loop


def test_options_are_flags():
    flags = set(flags_of("train").values())
    renamed = {"seed": "global_seed"}
    for field in dataclasses.fields(loop.LoopOptions):
        assert renamed.get(field.name, field.name) in flags
