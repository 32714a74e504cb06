"""The code of model cards; tests/test_export.py and tests/test_covariates_of_scripts.py run it."""
import ast

from reporting import loading_code

METADATA = dict(model="DiT-XL/2", image_size=896, config=dict(num_classes=3),
                header=dict(size=128, layout="rgb"), base=dict(name="w.pt"))


def code_of(text):
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))


def test_the_original_code_and_its_changes():
    text = loading_code.original_code(METADATA, "a.pt", ["add 896"])
    assert "--model DiT-XL/2 --image-size 896 --num-classes 3 --ckpt a.pt" in text
    assert "has to be changed:\n\n- add 896\n" in text and "untile(mosaic, 128, 'rgb')" in text
    assert "changed" not in loading_code.original_code(METADATA, "a.pt", [])


def test_covariates_are_given_as_an_example():
    whole, adapter = (loading_code.state_dict(METADATA, "m.safetensors", [70.0, "it's `F`"]),
                      loading_code.peft_adapter(METADATA, [70.0, "it's `F`"]))
    for text in (whole, adapter):
        assert """encode(columns, [[70.0, "it's `F`"]], 'this row')""" in code_of(text)
        ast.parse(code_of(text))
        assert "`conditioned(x, t, y)`" in text
    assert "load_file('FOLDER/m.safetensors')" in whole and "'weights/w.pt'" in adapter


def test_without_covariates():
    assert "train.py --ckpt m.safetensors" in loading_code.state_dict(METADATA, "m.safetensors")
    text = loading_code.peft_adapter(METADATA)
    ast.parse(code_of(text))
    assert "conditioned" not in text
