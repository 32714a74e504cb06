"""What a training step's table counts."""
import models
from benchmarks import scaling, training_cost
from benchmarks.training_cost import TrainingCost, TrainingSetup

COST = TrainingCost(step_seconds=[0.5, 2.0, 4.0], peak_gb=1.5, operations=3e12, matmul_rate=20e12)


def test_matrix_products_are_counted():
    model = models.DiT_models["DiT-T/4"](input_size=8)  # 4 blocks of width 384
    linear = 4 * 24 * 4 * 384 ** 2
    attention = 4 * 4 * 16 * 384
    count = training_cost.count_operations
    assert count(model, 4, backward=False) == linear + attention
    assert count(model, 4, backward=True) == 2 * linear + 3.5 * attention


def test_rows():
    cells = training_cost.row("optimized", COST, 8).split()
    assert cells == ["optimized", "2.000", "4.0000", "12.000", "20.000", "60", "%", "1.50"]
    assert "out of memory" in training_cost.row("baseline", None, 1)


def test_scaling_rows():
    setup = TrainingSetup(model="DiT-T/4", image_size=64, batch_size=8, steps=3, device="cpu")
    assert setup.tokens == 4
    assert (scaling.row("all", setup, COST)
            == "| 64 x 64 | 4, all | 8 | 2.000 | 4.0000 | 12.000 | 1.50 |")
    assert (scaling.row("foreground", setup, None)
            == "| 64 x 64 | 3, foreground | 8 | out of memory | | | |")
