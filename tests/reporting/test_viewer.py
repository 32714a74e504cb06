"""The viewer of report.html, in a headless Chromium, and what Python puts into it."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from browser import Browser
from helpers import related

from metrics import statistic
from metrics.volume_sets import VolumeSet
from reporting import blocks, packed_volumes, viewer
from reporting.page import embedded_json

SIDE = 24
HOSTILE = "</script><img src=x onerror=alert(1)>\u202eb"


class Pool:
    """As much of metrics.statistic.Pool as the viewer needs."""

    def __init__(self, volumes, real=3, side=SIDE):
        affine = np.diag([2.0, 3.0, 2.5, 1.0])
        affine[:3, 3] = -20, -30, -25
        ids = [HOSTILE, *(f"sub-{k:02d}" for k in range(1, real))]
        self.side = side
        self.sets = {"real": self._set(ids, affine),
                     "synthetic": self._set([f"{k:06d}" for k in range(len(volumes) - real)], None)}
        self.volumes = {"real": volumes[:real], "synthetic": volumes[real:]}

    @staticmethod
    def _set(ids, affine):
        class Set(SimpleNamespace):
            def __len__(self):
                return len(self.ids)
        def affine_of(i):
            own = affine.copy()
            own[0, 3] += 10 * i         # each volume lies farther to the right
            return own

        return Set(ids=ids, affine=affine, affine_of=affine_of,
                   voxel_sizes=np.array([2.0, 3.0, 2.5]))

    def part(self, name):
        return self.volumes[name]


@pytest.fixture(scope="module")
def volumes():
    return (related(7, SIDE, seed=5) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def page(volumes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    table = blocks.Table(
        ["name", "value", "p"],
        [["a", "**0.5** [0.1, 0.9]", "0.04"], ["B", "–", "< 0.001"], ["c10", "−3", "0.001"],
         ["c9", "1,200", "1e−05"]])
    path = folder / "report.html"
    path.write_text(blocks.html_page(
        [blocks.Heading(1, "Evaluation"), table, *viewer.make_viewers(Pool(volumes), 3)], folder,
        "Evaluation"))
    return path


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture
def opened(browser, page):
    browser.errors.clear()
    browser.open(page)
    browser.wait_for("[...document.querySelectorAll('.intensity')].every(e => e.textContent)")
    yield browser
    assert browser.errors == []


def texts(browser, name):
    """What both sides say of the crosshair or the volume."""
    return browser.run(f"[...document.querySelectorAll('.{name}')].map(e => e.textContent)")


def column(browser, index):
    return browser.run("[...document.querySelectorAll('tbody tr')].map("
                       f"row => row.cells[{index}].textContent)")


def test_volumes_are_shown_exactly(opened, volumes):
    """Each voxel of a volume, as the page's script unpacks it, and the value at the crosshair."""
    found = opened.run(f"unpack(document.getElementById('volume-real-1').textContent, {SIDE})"
                       ".then(voxels => [...voxels])")
    assert np.array_equal(np.reshape(found, (SIDE,) * 3), volumes[1])
    assert texts(opened, "voxel") == ["12, 12, 12"] * 2
    assert texts(opened, "world") == ["4.0, 6.0, 5.0", "not known"]
    opened.click(".side[data-set=real] .next")
    opened.wait_for("document.querySelector('.world').textContent === '14.0, 6.0, 5.0'")
    opened.click(".side[data-set=real] .previous")
    opened.wait_for("document.querySelector('.world').textContent === '4.0, 6.0, 5.0'")
    expected = [volumes[0][12, 12, 12], volumes[3][12, 12, 12]]
    assert texts(opened, "intensity") == [f"{value / 255:.3f}" for value in expected]


def test_a_click_moves_both_sides_and_the_wheel_goes_through_slices(opened):
    axial = ".side[data-set=real] canvas[data-view=axial]"
    width, height = opened.run(f"(({{width, height}}) => [width, height])"
                               f"(document.querySelector('{axial}').getBoundingClientRect())")
    assert width / height == pytest.approx(2 / 3, rel=0.02)     # voxels of 2 x 3 mm
    opened.click(axial, dx=width / 4, dy=height / 4)            # to the right, and posterior
    here, there = texts(opened, "voxel")
    x, y, z = map(int, here.split(", "))
    assert here == there and x in (17, 18) and y in (5, 6) and z == 12  # a pixel more or less
    opened.wheel(axial, 120)
    opened.wait_for(f"document.querySelector('.voxel').textContent === '{x}, {y}, 11'")
    assert "axial view, slice 12 of 24" in opened.run(
        f"document.querySelector('{axial}').getAttribute('aria-label')")
    opened.click(".linked")
    opened.wheel(axial, -120)
    opened.wait_for(f"document.querySelector('.voxel').textContent === '{x}, {y}, 12'")
    assert texts(opened, "voxel") == [f"{x}, {y}, 12", f"{x}, {y}, 11"]
    opened.click(".linked")                              # again to the same place
    assert texts(opened, "voxel") == [f"{x}, {y}, 12"] * 2
    opened.click(".reset")
    assert texts(opened, "voxel") == ["12, 12, 12"] * 2


def test_keys_move_and_choose_volumes(opened, volumes):
    opened.run("document.querySelector('.side[data-set=synthetic] canvas[data-view=sagittal]')"
               ".focus()")
    for key, code in (("ArrowRight", 39), ("ArrowUp", 38), ("PageUp", 33), ("PageUp", 33)):
        opened.press(key, code)
    assert texts(opened, "voxel") == ["14, 13, 13"] * 2     # anterior, superior, right
    opened.press(".")
    opened.wait_for("document.querySelectorAll('.id')[1].textContent === '000002'")
    opened.press(",")
    opened.press(",")
    opened.wait_for("document.querySelectorAll('.id')[1].textContent === '000003'")
    assert texts(opened, "intensity")[1] == f"{volumes[6][14, 13, 13] / 255:.3f}"


def test_views_show_left_on_the_left_and_the_window(opened, volumes):
    """Pixels of the axial view at voxel centers, against the volume's own."""
    opened.click(".crosshair")
    draw = """(([side, voxels]) => {
        const canvases = [...document.querySelectorAll(".side[data-set=real] canvas")];
        const views = new VolumeViews(
            Object.fromEntries(canvases.map(canvas => [canvas.dataset.view, canvas])), "real", side,
            [2, 3, 2.5], () => {});
        views.voxels = new Uint8Array(voxels);
        views.window = {black: 51, white: 204};
        const out = {};
        for (const [name, view] of Object.entries(VIEWS)) {
            views.position = [5, 7, 9];
            views.fillSlice(view);
            const data = views.slice.getContext("2d").getImageData(0, 0, side, side).data;
            out[name] = [...data].filter((_, k) => k % 4 === 0);
        }
        return out;
    })"""
    draw += f"({json.dumps([SIDE, volumes[0].ravel().tolist()])})"
    found = {name: np.reshape(pixels, (SIDE, SIDE)) for name, pixels in opened.run(draw).items()}
    windowed = np.clip(np.round((volumes[0] - 51.0) / 153 * 255), 0, 255)
    expected = {"axial": windowed[:, ::-1, 9].T, "coronal": windowed[:, 7, ::-1].T,
                "sagittal": windowed[5, :, ::-1].T}     # rows from the top, columns from the left
    for name, pixels in found.items():
        assert np.abs(pixels - expected[name]).max() <= 1, name


def test_tables_sort_numbers_as_numbers(opened):
    heading = "th:nth-child({}) button".format
    assert opened.run("document.querySelectorAll('th button').length") == 3
    opened.click(heading(2))
    assert column(opened, 1) == ["−3", "0.5 [0.1, 0.9]", "1,200", "–"]
    assert opened.run("document.querySelectorAll('th')[1].getAttribute('aria-sort')") == "ascending"
    opened.click(heading(2))
    assert column(opened, 1) == ["1,200", "0.5 [0.1, 0.9]", "−3", "–"]      # missing ones last
    opened.click(heading(2))
    assert column(opened, 0) == ["a", "B", "c10", "c9"]                     # as written
    opened.click(heading(1))
    assert column(opened, 0) == ["a", "B", "c9", "c10"]
    opened.run("document.querySelector('th:nth-child(3) button').focus()")
    opened.press("Enter", 13)
    assert column(opened, 2) == ["1e−05", "< 0.001", "0.001", "0.04"]


def test_names_from_files_stay_text(opened, page):
    assert opened.run("document.querySelector('.id').textContent") == HOSTILE.replace(
        "\u202e", "\\u202e")
    assert opened.run("document.querySelectorAll('img').length") == 0
    assert "<img" not in page.read_text()
    assert embedded_json("x", "</script>").count("</script>") == 1


def test_the_policy_stops_other_scripts(browser, page, tmp_path):
    """A script that is not ours, even in the file, does not run; nor is anything loaded."""
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace(
        "</h1>", "</h1><script>window.bad = 1</script><b onclick='window.bad = 1'>x</b>"))
    browser.open(changed)
    browser.click("b")
    assert browser.run("window.bad === undefined")
    assert any("Content Security Policy" in str(error) for error in browser.errors)
    browser.errors.clear()
    assert not re.search(r'(src|href)="(?!data:)', page.read_text())
    assert "https://" not in page.read_text() and "http://" not in page.read_text()


def test_dark_light_and_print(opened, tmp_path):
    background = "getComputedStyle(document.body).backgroundColor"
    for scheme, color in (("dark", "rgb(22, 24, 27)"), ("light", "rgb(255, 255, 255)")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.call("Emulation.setEmulatedMedia", features=features)
        assert opened.run(background) == color
        opened.call("Emulation.setEmulatedMedia", media="print", features=features)
        assert opened.run(background) == "rgb(255, 255, 255)"   # paper is white, also in the dark
        assert opened.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
        assert opened.run("document.querySelector('canvas').getBoundingClientRect().width") > 50
    opened.call("Emulation.setEmulatedMedia", media="")
    opened.print_to(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


# ------------------------------------------------------------------------- copies and their sources

FLAGGED = [{"volume": "s1", "source": HOSTILE, "ratio": 0.1, "distance": 0.0,
            "mirrored": "left-right", "mirrored_axes": [0], "shift": [2, 0, -1]},
           {"volume": "s0", "source": "t1", "ratio": 0.2, "distance": 0.0, "mirrored": "",
            "mirrored_axes": [], "shift": [0, 0, 0]}]


@pytest.fixture(scope="module")
def copied(volumes):
    """A pool of 2 real, 3 synthetic and 2 training volumes; s1 and s0 are copies of the latter."""
    train = volumes[5:]
    parts = {"--real": volumes[:2], "--train": train, "--synthetic": np.stack([
        train[1], np.roll(train[0, ::-1], (2, -1), (0, 2)), volumes[2]])}
    names = {"--real": ["r0", "r1"], "--synthetic": ["s0", "s1", "s2"], "--train": [HOSTILE, "t1"]}
    sets = {flag: VolumeSet(flag, "folder", None, names[flag], names[flag], SIDE,
                            np.array([2.0, 3.0, 2.5]), part.__getitem__, affine=np.eye(4))
            for flag, part in parts.items()}
    pool = statistic.Pool(sets["--real"], sets["--synthetic"], sets["--train"])
    pool.load(1, None)
    return pool


def test_copies_are_shown_beside_their_sources(browser, copied, tmp_path):
    """The source is moved as it matches, so both sides are equal here; they step together."""
    shown = viewer.make_viewers(copied, 3, FLAGGED)
    page = tmp_path / "report.html"
    page.write_text(blocks.html_page([blocks.Heading(1, "Evaluation"), *shown], tmp_path, "E"))
    browser.errors.clear()
    browser.open(page)
    browser.wait_for("[...document.querySelectorAll('.intensity')].every(e => e.textContent)")
    unpacked = [browser.run(f"unpack(document.getElementById('volume-{name}').textContent, {SIDE})"
                            ".then(voxels => [...voxels])")
                for name in ("copy-0", "source-0", "copy-1", "source-1")]
    for found, k in zip(unpacked, (1, 1, 0, 0)):
        assert np.array_equal(np.reshape(found, (SIDE,) * 3), copied.part("synthetic")[k])
    assert "2 of 2 flagged copies, each beside the training volume" in browser.run(
        "document.body.textContent")
    source = HOSTILE.replace("\u202e", "\\u202e")
    source += ", mirrored left-right, moved by +2, +0, -1 voxels"
    assert texts(browser, "id") == ["r0", "s0", "s1", source]
    assert browser.run("document.querySelectorAll('img').length") == 0
    browser.click("section[data-name=copies] .side[data-set=source] .next")
    browser.wait_for("document.querySelectorAll('.id')[3].textContent === 't1'")
    assert texts(browser, "id") == ["r0", "s0", "s0", "t1"]
    browser.click("section[data-name=copies] .side[data-set=copy] canvas[data-view=axial]", dx=20)
    first, second, third, fourth = texts(browser, "voxel")
    assert first == second == "12, 12, 12" != third == fourth
    here, there = texts(browser, "intensity")[2:]
    assert here == there
    assert texts(browser, "world")[3] == "not known"        # it was moved
    browser.click("section[data-name=copies] .reset")
    assert texts(browser, "voxel") == ["12, 12, 12"] * 4
    assert browser.errors == []


# ----------------------------------------------------------------------------- without a browser

def test_evenly_spaced_volumes_are_chosen(volumes):
    (shown,) = viewer.make_viewers(Pool(volumes), 2)
    assert shown.sets[1]["ids"] == ["000000", "000003"] and shown.note() == ""
    assert shown.counts() == "2 of 3 real and 2 of 4 synthetic volumes"
    unpacked = packed_volumes.unpacked(shown.sets[1]["packed"][1], SIDE)
    assert np.array_equal(unpacked, volumes[6])
    assert viewer.make_viewers(Pool(volumes), 0) == []
    assert "2 of 3 real" in shown.markdown()


def test_a_page_that_would_be_too_large_holds_fewer_and_says_so(volumes, monkeypatch):
    sizes = [len(text) for found in viewer.make_viewers(Pool(volumes), 3)[0].sets
             for text in found["packed"]]
    monkeypatch.setattr(viewer, "MAX_BYTES", int(2.5 * max(sizes)))
    (shown,) = viewer.make_viewers(Pool(volumes), 3)
    assert [len(found["ids"]) for found in shown.sets] == [1, 1]
    assert shown.note().startswith("--viewer-volumes 3: the page holds 1 of 3 real and 1 of 4")
    assert shown.note() in shown.html(None)


def test_eight_and_eight_volumes_of_128_voxels_take_less_than_30_mb():
    """Even of noise, which cannot be compressed: then there are fewer."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 128), np.uint8)
    many = np.broadcast_to(noise[0], (16, 128, 128, 128))
    (shown,) = viewer.make_viewers(Pool(many, real=8, side=128), 8)
    assert len(shown.html(None)) < 28e6 and shown.note()
    assert json.dumps(shown.sets[0]["voxel_mm"]) == "[2.0, 3.0, 2.5]"


def test_copies_have_a_place_even_in_a_page_that_is_full(copied, monkeypatch):
    sizes = [len(text) for shown in viewer.make_viewers(copied, 3, FLAGGED)
             for found in shown.sets for text in found["packed"]]
    assert len(sizes) == 2 + 3 + 2 * 2
    monkeypatch.setattr(viewer, "MAX_BYTES", max(sizes) * 4)
    sets, copies = viewer.make_viewers(copied, 3, FLAGGED)
    assert [len(found["ids"]) for found in (*sets.sets, *copies.sets)] == [1, 1, 1, 1]
    assert sets.note().startswith("--viewer-volumes 3: the page holds 1 of 2 real and 1 of 3 synth")
    assert copies.note().startswith("--viewer-volumes 3: the page holds 1 of 2 flagged copies, as")
    assert copies.markdown() == (
        "`report.html` shows 1 of 2 flagged copies in three views to scroll through.")
    (only,) = viewer.make_viewers(copied, 1)
    assert only.heading == "Volumes"
