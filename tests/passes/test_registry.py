"""Tables of names: our own are imported on demand, those of other packages are found through entry points."""

import sys
from pathlib import Path

import pytest

from passes.errors import InputError
from passes.registry import Registry

GROUP = "tightfit.test"
COLOURS = {"red": "colours_of_ours:RED", "never": "there_is_no_such_module:X"}


def install(folder: Path, package: str, points: dict[str, str], module: str = "") -> None:
    """Lay a package with entry points of `GROUP` into a folder of `sys.path`, as an installer does."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(f"{name} = {at}\n" for name, at in points.items()))
    if module:
        (folder / f"{package}_code.py").write_text(module)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages beside the real ones, with the module that our own table names."""
    (tmp_path / "colours_of_ours.py").write_text("RED = 'our red'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.fixture
def colours() -> Registry[str]:
    return Registry("colour", COLOURS, GROUP)


def test_our_own_names_are_imported_when_asked_for(site, colours):
    assert colours.find("red") == "our red"
    assert colours.names() == ("red", "never"), "in the order of the table, none of them imported"


def test_entry_points_are_read_on_a_miss_only(site, colours, monkeypatch):
    def refuse(**selection):
        raise AssertionError("a name of our own reads no entry points")

    monkeypatch.setattr("importlib.metadata.entry_points", refuse)
    assert colours.find("red") == "our red"
    assert colours.names() == ("red", "never")


def test_another_package_adds_a_name(site, colours):
    install(site, "paints", {"teal": "paints_code:Shades.TEAL"}, "class Shades:\n    TEAL = 'their teal'\n")
    assert colours.find("teal") == "their teal"
    assert colours.names() == ("red", "never")
    assert colours.names(installed=True) == ("red", "never", "teal")


def test_an_unknown_name_says_the_nearest(site, colours):
    install(site, "paints", {"teal": "paints_code:TEAL"})
    with pytest.raises(InputError, match=r"unknown colour 'teel'\. Did you mean 'teal'") as caught:
        colours.find("teel")
    assert caught.value.remedy == "one of red, never, teal"
    with pytest.raises(InputError) as caught:
        colours.find("teel", remedy="paint it again")
    assert caught.value.remedy == "paint it again"


def test_a_name_of_two_packages_is_refused(site, colours):
    install(site, "paints", {"teal": "paints_code:TEAL"})
    install(site, "inks", {"teal": "inks_code:TEAL"})
    with pytest.raises(InputError, match=r"'teal' is there twice: in (paints and in inks|inks and in paints)"):
        colours.find("teal")


def test_no_package_takes_the_place_of_our_own(site, colours):
    install(site, "paints", {"red": "paints_code:RED"}, "RED = 'their red'\n")
    assert colours.find("red") == "our red"
    with pytest.raises(InputError, match="'red' is there twice: in tightfit and in paints"):
        colours.names(installed=True)


@pytest.mark.parametrize("module", ["", "import nothing_of_this_name\n", "BLUE = 1\n"])
def test_a_package_that_cannot_be_loaded_is_named(site, colours, module):
    install(site, "broken", {"teal": "broken_code:TEAL"}, module)
    with pytest.raises(InputError, match="'teal' of broken cannot be loaded from broken_code:TEAL"):
        colours.find("teal")
