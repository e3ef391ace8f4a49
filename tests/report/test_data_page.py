"""The inspection command and its page."""

import json
import re
import sys

import h5py
import numpy as np
import pytest

from daps_robot.commands import cli
from daps_robot.commands.inspect_data import InspectData, run


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Twelve demonstrations in which an action is NaN, of a robot that is not ours; the names want escaping."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with h5py.File("pushing.hdf5", "w") as file:
        for i in range(12):
            group = file.create_group(f"data/demo_{i}")
            group["actions"] = rng.normal(size=(30 + i, 3))
            group["obs/<b>state"] = rng.normal(size=(30 + i, 2))
        file["data/demo_4/actions"][7, 1] = np.nan
        env_args = {"env_name": "Lift", "env_version": "1.5.1", "env_kwargs": {"robots": "<i>Sawyer", "control_freq": 20}}
        file["data"].attrs["env_args"] = json.dumps(env_args)
    return "pushing.hdf5"


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["inspect_data.py", *arguments])
    cli.main(InspectData, run)


def test_figures_findings_and_page(dataset, monkeypatch, capsys, tmp_path):
    call(monkeypatch, "--dataset", dataset)
    out = capsys.readouterr().out
    assert "12 demonstrations (11 to train on, 1 held out), 30 to 41 steps, 426 in all (20 a second, 0.4 minutes)" in out
    assert "! NaN or infinity (training refuses this)" in out
    assert "demo_4, actions[1]: 1 values, the first at step 7" in out
    assert "robots <i>Sawyer instead of Panda" in out
    page = (tmp_path / "runs" / "pushing" / "data.html").read_text()
    assert (
        "pushing: cannot be trained on yet (NaN or infinity, Recorded in another set-up than daps_robot/Lift-v0 has here)" in page
    )
    assert "demo_4, actions[1]: 1 values" in page
    assert "<b>" not in page and "<i>Sawyer" not in page and "&lt;i&gt;Sawyer" in page
    assert page.count("<svg") == 1 + 2 * 3 and "<script" not in page and not re.search(r"https?://", page)


def test_another_place_and_other_keys(dataset, monkeypatch, capsys, tmp_path):
    call(monkeypatch, "--dataset", dataset, "--out", "here/page.html", "--obs-keys", "<b>state")
    assert (tmp_path / "here" / "page.html").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        call(monkeypatch, "--dataset", dataset, "--out", "file/page.html")
    assert "choose another --out" in capsys.readouterr().err


def test_training_refuses_what_the_page_says_it_does(dataset, monkeypatch, capsys):
    from daps_robot.commands.train_action_vae import TrainActionVAE
    from daps_robot.commands.train_action_vae import run as train

    monkeypatch.setattr(sys, "argv", ["train", "--dataset", dataset, "--env", "none", "--device", "cpu"])
    with pytest.raises(SystemExit):
        cli.main(TrainActionVAE, train)
    assert "demo_4: 'actions' is NaN or infinite at step 7" in capsys.readouterr().err
