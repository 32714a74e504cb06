"""The report's table of structures."""
from reporting import structures
from reporting.blocks import Table


def effect(structure, family, value, **more):
    return {"name": f"{structure}, d", "aim": "0", "how": "d", "value": value, "family": family,
            "structure": structure, "mean_ml": {"real": 12.345, "synthetic": 14.0}, **more}


def entries():
    found = {"mmd": {"name": "MMD", "aim": "low", "how": "h", "value": 1.0},
             "anatomy_small_effects": {"name": "small", "aim": "1", "how": "h", "value": 0.5,
                                       "warnings": ["two | rows are missing"],
                                       "source": "segmented by the network x"},
             "anatomy_reliable": {"name": "reliable", "aim": "real", "how": "h", "value": 0.9,
                                  "unreliable": {"real": [], "synthetic": ["000003"]}}}
    for family, value in (("volume", 0.8), ("share", 0.7), ("conditional", None)):
        found[f"anatomy_{family}_brain_stem"] = effect(
            "brain_stem", family, value, interval=[0.25, 1.35], p=0.01, p_adjusted=0.17,
            floor={"mean": 0.0, "low": -0.52, "high": 0.41}, vae={"rgb": 0.3})
    return found


def test_rows_of_structures_leave_the_table_of_numbers():
    assert list(structures.main_entries(entries())) == [
        "mmd", "anatomy_small_effects", "anatomy_reliable"]
    found = structures.effects_by_structure(entries())
    assert list(found) == ["brain_stem"] and found["brain_stem"]["share"]["value"] == 0.7


def test_a_row_per_structure():
    blocks = structures.structure_blocks(entries(), ["rgb"])
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert table.rows == [[
        "brain stem", "12.35", "14", "**0.8** [0.2, 1.4]", "0.17", "**0.7** [0.2, 1.4]", "0.17",
        "**–**", "0.17", "−0.52 … 0.41", "0.3"]]
    assert all(len(row) == len(table.head) for row in table.rows)
    text = "\n".join(block.markdown() for block in blocks)
    assert "not reliable: 1 synthetic: `000003`" in text and "rows are missing" in text
    assert "segmented by the network x" in text


def test_nothing_without_anatomy():
    assert structures.structure_blocks({"mmd": entries()["mmd"]}, []) == []
