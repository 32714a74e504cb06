import numpy as np

from metrics import smoothness


def test_gradient_energy_by_hand():
    volume = np.zeros((6, 6, 6), np.uint8)
    volume[:, :, 3:] = 51   # one step of 0.2 between slices 2 and 3: from one rgb tile to the next
    assert np.allclose(smoothness.gradient_energy(volume), [0, 0, 0.04 / 5, 0, 0.04])
    volume[:, :, 3:] = 0
    volume[4:] = 102        # a step of 0.4 along the first axis
    assert np.allclose(smoothness.gradient_energy(volume), [0.16 / 5, 0, 0, 0, 0])
    volume[:] = 0
    volume[:, :, 1] = 255   # inside a tile: two steps of 1 among its four
    found = smoothness.gradient_energy(volume)
    assert np.allclose(found, [0, 0, 2 / 5, 2 / 4, 0])
    assert np.allclose(smoothness.gradient_energy(volume / 255.0), found)


def test_ratios_of_weighted_sets_by_hand():
    energy = np.array([[1.0, 2, 8, 0, 1], [3, 2, 8, 0, 1], [4, 8, 4, 1, 2]])
    real, other = np.array([[1.0, 1, 0], [0, 2, 0]]), np.array([[0.0, 0, 1], [2, 0, 1]])
    assert np.allclose(smoothness.energy_ratio(energy, 0, real, other), [4 / 2, 2 / 3])
    # of set "other", relative to the real set: 2, 4 and 1/2 along the three axes
    assert np.isclose(smoothness.through_plane_ratio(energy, real, other)[0], 0.5 / 8 ** 0.5)
    no_real_energy = smoothness.energy_ratio(energy, 3, real, other)
    assert np.isnan(no_real_energy).all()
