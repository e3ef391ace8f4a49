"""Names of data sets: files, folders, and what is made or fetched."""

import pytest

from daps_robot.data import robomimic
from daps_robot.data.catalog import DATASETS, dataset_name, fetch, is_path, locate
from daps_robot.data.download import HubFile
from daps_robot.errors import ConfigError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory without other data folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAPS_ROBOT_DATA", raising=False)
    return tmp_path


def lerobot(folder):
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text("{}")
    return folder


def test_files_and_folders_are_paths(place):
    lerobot(place / "pushing")
    for dataset, name in {
        "a/b.hdf5": "b",
        "b.hdf5": "b",
        "./pushing": "pushing",
        "pushing/": "pushing",
        "pushing": "pushing",
        str(lerobot(place / "v1.5")): "v1.5",
    }.items():
        assert is_path(dataset) and locate(dataset) is not None
        assert dataset_name(dataset) == name
    (place / "lift").mkdir()  # any other folder is no data set
    assert not is_path("lift") and locate("lift") is None and dataset_name("lift") == "lift"


def test_a_name_is_looked_for_in_the_data_folders(place, monkeypatch):
    lerobot(place / "data" / "pushing")
    assert locate("pushing").samefile(place / "data" / "pushing")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "pushing.hdf5").write_text("")
    monkeypatch.setenv("DAPS_ROBOT_DATA", "elsewhere")
    assert locate("pushing").samefile(place / "elsewhere" / "pushing.hdf5")


@pytest.mark.parametrize("where", [".", "data"])
def test_a_folder_does_not_shadow_the_catalogue(place, where):
    folder = lerobot(place / where / "pusht")
    with pytest.raises(ConfigError, match=rf"pusht is a data set of the catalogue.*--dataset {folder.resolve()} for the folder"):
        fetch("pusht")
    assert fetch(str(folder)) == folder


def test_robomimics_sets_are_in_the_catalogue(place, monkeypatch, capsys):
    names = {"lift-ph", "can-ph", "can-mh", "square-ph", "square-mh"}
    if not names & set(DATASETS):
        pytest.skip("the package was installed before these entry points were there: install it again")
    asked = []
    monkeypatch.setattr(robomimic, "hub_file", lambda *name: asked.append(name) or HubFile("https://x/y", "00", 7))
    monkeypatch.setattr(robomimic, "download", lambda url, path, sha256, size: asked.append((url, path.name, sha256, size)))
    for name in names:
        assert DATASETS[name].name == name
    assert str(fetch("can-mh")) == "data/can-mh.hdf5"
    assert asked == [(robomimic.REPOSITORY, "v1.5/can/mh/low_dim_v15.hdf5"), ("https://x/y", "can-mh.hdf5", "00", 7)]
    assert DATASETS["square-mh"].env_id == "daps_robot/Square-v0"
    assert "300 demonstrations" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Did you mean 'lift-ph'"):
        fetch("lift-hp")
