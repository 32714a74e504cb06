"""The note beside a checkpoint that says which refiner was trained for it."""
from training import refiner_record


def test_the_note_lies_beside_the_checkpoint(tmp_path):
    checkpoint = tmp_path / "0000004.safetensors"
    assert refiner_record.refiner_hint(checkpoint) is None
    assert refiner_record.record_refiner(checkpoint, tmp_path / "r", "a" * 64) is None
    assert (tmp_path / "0000004.refiner.json").is_file()
    assert refiner_record.refiner_hint(checkpoint) == (
        f"a refiner was trained for this checkpoint: --refiner {tmp_path / 'r'} ({'a' * 12}) "
        "applies it")
    (tmp_path / "0000004.refiner.json").write_text("[]")
    assert refiner_record.refiner_hint(checkpoint) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    line = refiner_record.record_refiner(tmp_path / "none" / "1.safetensors", "r", "a" * 64)
    assert line.startswith(f"{tmp_path / 'none' / '1.refiner.json'}: cannot be written")
