"""Pictures from a folder through every command: tokenizer, codes and back, prior, samples."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from daps_robot.commands import image_codes, image_prior
from daps_robot.commands.image_codes import DecodeImages, EncodeImages
from daps_robot.commands.image_prior import SampleImages, TrainImagePrior
from daps_robot.commands.train_image_tokenizer import PicturesConfig, TrainImageTokenizer, choose_preset, run
from daps_robot.data.pictures import ArrayPictures
from daps_robot.errors import CheckpointError, ConfigError, DataError, RunDirectoryError
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.training.objective import TrainerConfig


def save_pictures(folder, n=6, size=32, seed=0, mode="RGB"):
    chance = np.random.default_rng(seed)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            shape = (size, size, 3) if mode == "RGB" else (size, size)
            Image.fromarray(chance.integers(0, 256, shape, np.uint8)).save(folder / name / f"{i}.png")
    return folder


def command(folder, estimator="daps", **pictures):
    default = TrainImageTokenizer.default(["--dataset", "folder", "--size", "32", "--estimator", estimator])
    settings = default.settings
    if hasattr(settings, "warm_start_steps"):
        settings = dataclasses.replace(settings, warm_start_steps=1)
    trainer = TrainerConfig(max_steps=2, batch_size=4, device="cpu", tensorboard=False)
    config = PicturesConfig(data=folder, size=32, **pictures)
    return TrainImageTokenizer("folder", "cifar10-quick", None, False, False, estimator, config, settings, trainer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tokenizer's run, and the pictures that it was trained on."""
    root = tmp_path_factory.mktemp("trained")
    pictures = save_pictures(root / "pictures")
    config = dataclasses.replace(command(pictures, dequantise=True, flip=True), out=root / "tokenizer")
    facts = run(config)
    return root / "tokenizer", pictures, facts


def test_what_a_run_leaves(trained):
    out, _, facts = trained
    assert {"model", "metrics.jsonl", "report.json", "report.html", "examples.png", "config.json"} <= {
        p.name for p in out.iterdir()
    }
    saved = json.loads((out / "report.json").read_text())
    assert saved["psnr"] == facts["psnr"] and saved["bits"] == 576
    assert {"ssim", "psnr_sample", "elbo", "bits_per_dimension", "perplexity"} <= saved.keys()
    dimensions = 32 * 32 * 3
    tokenizer = Tokenizer.from_pretrained(out / "model")
    # the noise of dequantisation changes the ELBO of noise pictures by little
    clean = 8 - (facts["elbo"] / dimensions - float(tokenizer.scaler.scale.log().mean())) / np.log(2)
    assert facts["bits_per_dimension"] == pytest.approx(clean, abs=0.1)


def test_pictures_are_scaled_to_unit_deviation(trained):
    out, _, _ = trained
    scaler = Tokenizer.from_pretrained(out / "model").scaler
    assert scaler.shift.tolist() == pytest.approx([0.5] * 3, abs=0.02)
    assert scaler.scale.tolist() == pytest.approx([12**-0.5] * 3, abs=0.02)


@pytest.mark.parametrize("estimator", ["fsq", "vae"])
def test_other_posteriors(trained, tmp_path, estimator):
    _, pictures, _ = trained
    facts = run(dataclasses.replace(command(pictures, estimator), out=tmp_path / "run"))
    assert ("elbo" in facts) == (estimator == "vae") and (tmp_path / "run" / "report.html").is_file()
    if estimator == "vae":
        with pytest.raises(CheckpointError, match="no codes"):
            image_codes.encode(EncodeImages(tmp_path / "run", pictures, tmp_path / "c"))


def test_pictures_to_codes_and_back(trained, tmp_path):
    run_folder, pictures, _ = trained
    codes = image_codes.encode(EncodeImages(run_folder, pictures, tmp_path / "codes.safetensors"))
    decoded = image_codes.decode(DecodeImages(run_folder, codes, tmp_path / "out"))
    tokenizer = Tokenizer.from_pretrained(run_folder / "model")
    found = sorted(path.relative_to(decoded).with_suffix("") for path in decoded.rglob("*.png"))
    assert found == sorted(path.relative_to(pictures).with_suffix("") for path in pictures.rglob("*.png"))
    x = torch.from_numpy(np.array(Image.open(pictures / "dogs" / "3.png")))[None] / 255
    expected = tokenizer.decode(tokenizer.encode(x))[0, 0].clamp(0, 1)
    again = torch.from_numpy(np.array(Image.open(decoded / "dogs" / "3.png"))) / 255
    assert torch.allclose(again, expected, atol=0.51 / 255)


def test_codes_of_another_tokenizer_are_refused(trained, tmp_path):
    run_folder, pictures, _ = trained
    codes = image_codes.encode(EncodeImages(run_folder, pictures, tmp_path / "codes.safetensors"))
    run(dataclasses.replace(command(pictures, "fsq"), out=tmp_path / "other"))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        image_codes.decode(DecodeImages(tmp_path / "other", codes, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked(trained, tmp_path):
    run_folder, pictures, _ = trained
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    (tmp_path / "codes").write_text("")
    with pytest.raises(ConfigError, match="overwrite"):
        image_codes.encode(EncodeImages(run_folder, pictures, tmp_path / "codes"))
    with pytest.raises(ConfigError, match="not empty"):
        image_codes.decode(DecodeImages(run_folder, tmp_path / "codes", tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").is_file()
    codes = image_codes.encode(EncodeImages(run_folder, trained[1], tmp_path / "good.safetensors"))
    image_codes.decode(DecodeImages(run_folder, codes, tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine" / "thesis.txt").is_file() and (tmp_path / "mine" / "cats" / "0.png").is_file()


def test_two_pictures_of_one_name_are_refused(trained, tmp_path):
    run_folder, _, _ = trained
    pictures = save_pictures(tmp_path / "pictures", n=1)
    Image.open(pictures / "cats" / "0.png").save(pictures / "cats" / "0.jpg")
    with pytest.raises(DataError, match="two pictures called cats/0"):
        image_codes.encode(EncodeImages(run_folder, pictures, tmp_path / "c"))


def test_a_damaged_picture_is_named_or_left_out(trained, tmp_path, capsys):
    run_folder, _, _ = trained
    pictures = save_pictures(tmp_path / "pictures", n=2)
    bad = pictures / "cats" / "1.png"
    bad.write_bytes(bad.read_bytes()[:90])
    with pytest.raises(DataError, match=r"cats/1\.png"):
        image_codes.encode(EncodeImages(run_folder, pictures, tmp_path / "c"))
    assert not (tmp_path / "c").exists()
    image_codes.encode(EncodeImages(run_folder, pictures, tmp_path / "c", skip_damaged=True))
    assert "left out 1 of 4" in capsys.readouterr().out


def test_a_prior_and_its_samples(trained, tmp_path):
    run_folder, _, _ = trained
    trainer = TrainerConfig(max_steps=2, batch_size=4, device="cpu", tensorboard=False)
    metrics = image_prior.train(TrainImagePrior(run_folder, out=tmp_path / "prior", width=16, layers=1, trainer=trainer))
    assert metrics["bits"] == pytest.approx(metrics["nll"] / np.log(2))
    sheets = [
        image_prior.sample(SampleImages(tmp_path / "prior", classes, 3, out=tmp_path / f"{i}.png"))
        for i, classes in enumerate([(), ("dogs",), ("dogs",), ("1",)])
    ]
    pixels = [np.array(Image.open(sheet)) for sheet in sheets]
    assert pixels[0].shape == (2 * 36, 3 * 36, 3) and pixels[1].shape == (36, 3 * 36, 3)
    assert np.array_equal(pixels[1], pixels[2]) and np.array_equal(pixels[1], pixels[3])
    with pytest.raises(ConfigError, match="Did you mean 'dogs'"):
        image_prior.sample(SampleImages(tmp_path / "prior", ("dog",), out=tmp_path / "x.png"))


def test_a_prior_does_not_take_its_tokenizers_place(trained, tmp_path):
    run_folder, pictures, _ = trained
    with pytest.raises(ConfigError, match="holds the tokenizer"):
        image_prior.train(TrainImagePrior(run_folder, out=run_folder, overwrite=True))
    other = tmp_path / "other"
    run(dataclasses.replace(command(pictures, "fsq"), out=other))
    with pytest.raises(RunDirectoryError, match="holds a run of TrainImageTokenizer"):
        image_prior.train(TrainImagePrior(run_folder, out=other, overwrite=True))
    assert Tokenizer.from_pretrained(other / "model").bits == 576


def test_a_run_notices_that_its_pictures_changed(tmp_path):
    pictures = save_pictures(tmp_path / "pictures", n=2)
    config = dataclasses.replace(command(pictures, "fsq"), out=tmp_path / "run")
    run(config)
    run(dataclasses.replace(config, resume=True))  # finished: measured again
    Image.open(pictures / "cats" / "0.png").save(pictures / "cats" / "7.png")
    with pytest.raises(RunDirectoryError, match="identity"):
        run(dataclasses.replace(config, resume=True))
    with pytest.raises(CheckpointError, match="no longer holds the pictures"):
        image_prior.train(TrainImagePrior(tmp_path / "run"))


def test_a_damaged_held_out_picture_ends_it_before_training(tmp_path):
    pictures = save_pictures(tmp_path / "pictures", n=2)
    last = pictures / "dogs" / "1.png"  # held out
    last.write_bytes(last.read_bytes()[:90])
    with pytest.raises(DataError, match="1 of 1 held-out pictures cannot be used"):
        run(dataclasses.replace(command(pictures), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_coloured_pictures_are_refused_by_a_tokenizer_of_grey_ones():
    grey = np.full((2, 4, 4, 3), 200, np.uint8)
    pink = grey.copy()
    pink[1, 0, 0] = 255, 130, 200  # of one value, once binarised
    index = torch.arange(2)
    assert image_codes.GreyPictures(ArrayPictures(grey)).gather(index).shape == (2, 4, 4, 1)
    with pytest.raises(DataError, match="1 of 2 pictures have colours"):
        image_codes.GreyPictures(ArrayPictures(pink)).gather(index)


@pytest.mark.parametrize("name", ["mnist", "chunk16", "cifar10"])
def test_motion_with_the_networks_of_something_else(name, tmp_path):
    default = TrainImageTokenizer.default(["--dataset", "lafan", "--preset", name])
    with pytest.raises(ConfigError, match="leave out --preset"):
        run(dataclasses.replace(default, dataset="lafan", preset=name, out=tmp_path / "run"))


def test_the_presets_of_the_command_line():
    assert TrainImageTokenizer.default(["--dataset", "cifar10"]).settings.beta_start == 6
    quick = TrainImageTokenizer.default(["--preset=mnist-quick", "--estimator=fsq"])
    assert quick.estimator == "fsq" and quick.trainer.batch_size == 64 and quick.trainer.optimizer.ema == 0.99
    assert choose_preset("mnist-10k", None, None).threshold == 127
    with pytest.raises(ConfigError, match="Did you mean 'mnist'"):
        choose_preset("mnits", None, None)
    with pytest.raises(ConfigError, match="choose 32, 64"):
        choose_preset("folder", None, 48)


def test_pictures_of_another_shape_than_the_networks(tmp_path):
    pictures = save_pictures(tmp_path / "pictures", n=2, size=64)
    config = command(pictures)
    wrong = dataclasses.replace(config, pictures=dataclasses.replace(config.pictures, size=64), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"\(32, 32, 3\).*\(64, 64, 3\)"):
        run(wrong)
